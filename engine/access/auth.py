"""Who calls: bearer tokens, and the names in certificates."""

import hashlib
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import StartupError, Unauthenticated
from engine.process.files import read_text

logger = logging.getLogger(__name__)

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})\s+([\x21-\x7e]+)")
_LEAST_TOKEN_LENGTH = 16


class Tokens:
    """The bearer tokens of a file, a line `NAME TOKEN` each; empty lines and those that start with # don't count.

    Raises:
        StartupError: When the file can't be read or has a bad line, which is named by its number only.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key = secrets.token_bytes(32)
        self._names = self._read()

    def reload(self) -> None:
        """Reads the file again; when it is bad, the log says so and the tokens stay as they are."""
        try:
            self._names = self._read()
            logger.info("%d tokens from %s", len(self._names), self._path)
        except StartupError as error:
            logger.error("%s; the tokens stay as they are", error)

    def name_of(self, authorization: str | bytes | None) -> str:
        """The name of the token in the value of an `authorization` header.

        Raises:
            Unauthenticated: When there is none, or it isn't known.
        """
        if not isinstance(authorization, str):
            raise Unauthenticated('the call has no token; send metadata authorization: "Bearer TOKEN"')
        scheme, _, token = authorization.partition(" ")
        name = self._names.get(self._digest(token.strip())) if scheme.lower() == "bearer" else None
        if name is None:
            raise Unauthenticated("the call's token is unknown; ask the server's operator for one")
        return name

    def _digest(self, token: str) -> bytes:
        # How long it takes to look up a keyed digest says nothing about the tokens: nobody outside knows the key.
        return hashlib.blake2b(token.encode("utf-8", "replace"), key=self._key).digest()

    def _read(self) -> dict[bytes, str]:
        try:
            lines = read_text(self._path).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise StartupError(f"--tokens {self._path} can't be read ({reason})") from None
        names: dict[bytes, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            names.update([self._parse(line.strip(), f"--tokens {self._path}, line {number}", names)])
        if not names:
            raise StartupError(f"--tokens {self._path} has no tokens; write a line `NAME TOKEN` for each client")
        return names

    def _parse(self, line: str, place: str, known: dict[bytes, str]) -> tuple[bytes, str]:
        match = _LINE.fullmatch(line)
        if not match:
            raise StartupError(f"{place} is not `NAME TOKEN` (the name of letters, digits, . _ -)")
        name, token = match.groups()
        if len(token) < _LEAST_TOKEN_LENGTH:
            raise StartupError(
                f"{place}: the token of {name} has {len(token)} characters, at least {_LEAST_TOKEN_LENGTH} are needed; "
                "make one with: openssl rand -hex 32"
            )
        digest = self._digest(token)
        if digest in known:
            raise StartupError(f"{place}: {name} has the token of {known[digest]}; give each its own")
        if name in known.values():
            raise StartupError(f"{place}: {name} has a token already; give each client one name")
        return digest, name


def name_in_certificate(properties: Mapping[str, Sequence[bytes]]) -> str | None:
    """The name of whoever has shown a certificate, of what gRPC knows of the connection, its `auth_context`.

    Returns:
        The common name, else the first alternative name, for example spiffe://cluster/service, else a part of the
        certificate's SHA-256. None where no certificate was shown.
    """
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        for value in filter(None, properties.get(key, ())):
            name = value.decode(errors="backslashreplace")
            return name if name.isprintable() else ascii(name)  # it goes into the log
    for certificate in properties.get("x509_pem_cert", ()):
        return f"sha256:{hashlib.sha256(certificate).hexdigest()[:32]}"
    return None
