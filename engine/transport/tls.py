"""TLS: the server's certificate, and those that clients must show."""

import logging
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from engine.errors import StartupError
from engine.process.files import read_bytes, version_of

logger = logging.getLogger(__name__)


def server_credentials(cert: Path, key: Path, client_ca: Path | None) -> Any:
    """Credentials for a port; new connections get a renewed certificate as soon as its files have changed.

    The files are PEM: the server's certificate chain, its key, and certificates of which clients must show one that
    these have signed (None: clients show none).

    Raises:
        StartupError: When a file can't be read, is no PEM, key and certificate don't fit together, or gRPC can't use
            them.
    """
    files = _Files(cert, key, client_ca)
    return grpc.dynamic_ssl_server_credentials(files.read(), files.renewed, client_ca is not None)


class _Files:
    """Certificate and key, and what those of clients are signed with; read again when they have changed.

    The log says, once for each certificate, that clients refuse it: it has expired, or is not yet valid.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._seen = self._versions()
        self._end: float | None = None  # of the certificate, seconds since 1970; None: not known, or told already

    def read(self) -> Any:
        """What a port needs of them."""
        cert, key, client_ca = self._cert, self._key, self._client_ca
        pair = _read("--tls-key", key), _read("--tls-cert", cert)
        authorities = _read("--tls-client-ca", client_ca) if client_ca else None
        context = _checked(cert, key, client_ca)
        if not _is_usable(pair, authorities):
            raise StartupError(
                f"gRPC can't use --tls-cert {cert} and --tls-key {key}; make a key that it knows, "
                "for example with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
            )
        self._look_as_a_client(context)
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    def renewed(self) -> Any:
        """Called by gRPC for each connection; None keeps what there is."""
        if self._end is not None and time.time() > self._end:
            self._end = None
            self._warn("certificate has expired")
        seen, self._seen = self._seen, self._versions()
        if self._seen == seen:
            return None
        try:
            configuration = self.read()
        except (StartupError, OSError) as error:  # files may go between two looks at them
            logger.error("%s; connections go on with the old certificate", error)
            return None
        logger.info("new certificate from %s", self._cert)
        return configuration

    def _versions(self) -> list[Any]:
        return [version_of(path) for path in (self._cert, self._key, self._client_ca) if path]

    def _look_as_a_client(self, server: ssl.SSLContext) -> None:
        """Looks at the certificate in a handshake in memory."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.load_verify_locations(self._cert)
        client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # whoever has signed it
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        sides = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
        self._end = None
        try:
            for side in sides * 2:
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
            end = (sides[0].getpeercert() or {}).get("notAfter")
            self._end = ssl.cert_time_to_seconds(str(end)) if end else None
        except ssl.SSLCertVerificationError as error:
            self._warn(error.verify_message)
        except ssl.SSLError as error:
            logger.debug("--tls-cert %s could not be looked at: %s", self._cert, error)

    def _warn(self, reason: str) -> None:
        logger.warning("clients refuse --tls-cert %s: %s", self._cert, reason)


def _is_usable(pair: tuple[bytes, bytes], client_ca: bytes | None) -> bool:
    """Whether gRPC can serve with these; its own TLS knows fewer kinds of keys than Python's, which `_checked` asks."""
    trial = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    try:
        trial.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], client_ca, client_ca is not None))
    except RuntimeError:
        return False
    finally:
        trial.start()  # or its end wouldn't free the port
        trial.stop(0)
    return True


def _checked(cert: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Lets OpenSSL read the files, whose errors say more than gRPC's; gives a server's context of them."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with _refusing(f"--tls-cert {cert} and --tls-key {key} must be PEM, and belong together"):
        # A key with a passphrase would be asked for at the terminal.
        context.load_cert_chain(cert, key, password="")
    if client_ca:
        with _refusing(f"--tls-client-ca {client_ca} has no certificates in PEM"):
            context.load_verify_locations(client_ca)
    return context


def _read(flag: str, path: Path) -> bytes:
    with _refusing(f"{flag} {path} can't be read"):
        return read_bytes(path)


@contextmanager
def _refusing(fault: str) -> Iterator[None]:
    """What can't be read or used, in a context, is a StartupError with this and the reason."""
    try:
        yield
    except OSError as error:  # OpenSSL's are, too
        raise StartupError(f"{fault} ({getattr(error, 'reason', None) or error.strerror or error})") from None
