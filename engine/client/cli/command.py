"""What every command that asks a server has: where it is, and who asks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine.client import arguments
from engine.client.cli.outputs import UsageError
from engine.client.connection import Connection, is_word
from engine.client.synchronous import Client
from engine.client.target import fault_of, is_local

C = TypeVar("C", bound=Connection)

_OVERLOAD_RETRIES = 10


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Which server is asked, and as whom."""

    target: str = "127.0.0.1:50051"
    """HOST:PORT of the server."""

    model: str = ""
    """Name of the model, where the server has several; empty for its default."""

    timeout_s: float = 60.0
    """Deadline of each call, seconds, above 0."""

    tls: bool = False
    """Encrypt, and trust the authorities that gRPC knows."""

    tls_ca: Path | None = None
    """Encrypt, and trust the authorities in this PEM file."""

    tls_cert: Path | None = None
    """The client's own certificate (PEM), where the server asks for one; with --tls-key."""

    tls_key: Path | None = None
    """Key of that certificate (PEM)."""

    token: str | None = None
    """Bearer token, where the server asks for one. Other users of this machine can see it: better give a file."""

    token_file: Path | None = None
    """File with the token."""

    def connect(self, kind: type[C], **options: Any) -> C:
        """A client of one kind that these options ask for; `options` are others of its own.

        Raises:
            UsageError: When one of them can't be, or they don't fit together.
        """
        if fault := fault_of(self.target):
            raise UsageError(f"--target {self.target!r}: {fault}")
        if not 0 < self.timeout_s <= arguments.LONGEST_S:
            raise UsageError(f"--timeout-s must be above 0 and at most {arguments.LONGEST_S:g}, not {self.timeout_s:g}")
        token = self._token()
        return kind(
            self.target,
            self.timeout_s,
            model=self.model,
            tls=self.tls_ca or self.tls,
            certificate=self._certificate(),
            token=token,
            **options,
        )

    def _certificate(self) -> tuple[Path, Path] | None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together; give both")
        if self.tls_cert is None or self.tls_key is None:
            return None
        if not (self.tls or self.tls_ca):
            raise UsageError("--tls-cert needs TLS; give --tls or --tls-ca as well")
        return self.tls_cert, self.tls_key

    def _token(self) -> str | None:
        if self.token is not None and self.token_file is not None:
            raise UsageError("give --token or --token-file, not both")
        if self.token_file is not None:
            source = f"the content of --token-file {self.token_file}"
            token = self.token_file.read_text(errors="replace")
        elif self.token is not None:
            source, token = "--token", self.token
        else:
            return None
        token = token.strip()
        if not is_word(token):
            raise UsageError(f"{source} must be one word of printable ASCII")
        if not (self.tls or self.tls_ca or is_local(self.target)):
            raise UsageError(f"the token would travel to {self.target} unencrypted; give --tls or --tls-ca as well")
        return token


@dataclass(frozen=True, kw_only=True)
class Command(ServerOptions):
    """A command of `python -m engine.client`."""

    def run(self, client: Client) -> int:
        """Does it; the exit code."""
        raise NotImplementedError

    def client(self) -> Client:
        """The client that the options ask for.

        Raises:
            UsageError: When one of them can't be, or they don't fit together.
        """
        return self.connect(Client, retry_overload=_OVERLOAD_RETRIES)
