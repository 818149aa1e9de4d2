"""What every command of a client has: where the server is, who asks, and how failures are told."""

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tqdm import tqdm

from engine.client import arguments
from engine.client.cli.outputs import UsageError
from engine.client.clients import Client
from engine.client.connection import Connection, is_word
from engine.client.errors import ClientError
from engine.client.target import fault_of, is_local

C = TypeVar("C", bound=Connection)

_CALLERS_FAULT = ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED")


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
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together; give both")
        return kind(
            self.target,
            self.timeout_s,
            model=self.model,
            tls=self.tls_ca or self.tls,
            certificate=(self.tls_cert, self.tls_key) if self.tls_cert and self.tls_key else None,
            token=self._token(),
            **options,
        )

    def _token(self) -> str | None:
        if self.token is not None and self.token_file is not None:
            raise UsageError("give --token or --token-file, not both")
        token, source = self.token, "--token"
        if self.token_file is not None:
            token = self.token_file.read_text(errors="replace")
            source = f"the content of --token-file {self.token_file}"
        if token is None:
            return None
        token = token.strip()
        if not is_word(token):
            raise UsageError(f"{source} must be one word of printable ASCII")
        if not (self.tls or self.tls_ca or is_local(self.target)):
            raise UsageError(f"the token would travel to {self.target} unencrypted; give --tls or --tls-ca as well")
        return token


@dataclass(frozen=True, kw_only=True)
class Command(ServerOptions):
    """A command with the options of its connection."""

    retry_options: ClassVar[dict[str, int]] = {"retry_overload": 10}
    """How often calls are sent again, as `Connection` says."""

    def run(self, client: Client) -> int:
        """Does it; the exit code."""
        raise NotImplementedError

    def execute(self) -> int:
        """Runs it with a client, and says on stderr what went wrong.

        Returns:
            0 when it worked, 2 for bad input, 1 when the server failed or can't be reached, 130 after Ctrl-C.
        """
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files are any bytes
        try:
            with self.connect(Client, **self.retry_options) as client:
                code = self.run(client)
            sys.stdout.flush()
            return code
        except OSError as error:
            if error.filename is None:  # it is stdout: what is left of it would fail once more at the very end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            # Whoever reads the output, `head` say, has seen enough.
            return 0 if isinstance(error, BrokenPipeError) else report(error)
        except (ClientError, ValueError) as error:
            return report(error)
        except KeyboardInterrupt:
            return 130


def report(error: Exception, about: str = "") -> int:
    """Says what went wrong, on one line of stderr; the exit code."""
    text = f"{about}{error}"
    if isinstance(error, OSError) and error.strerror:
        # What has no name is what results are written to.
        text = f"{error.filename or 'stdout'} can't be used: {error.strerror[0].lower()}{error.strerror[1:]}"
    tqdm.write(f"error: {text}", file=sys.stderr)
    return 1 if isinstance(error, ClientError) and error.status not in _CALLERS_FAULT else 2
