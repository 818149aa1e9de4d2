"""TLS: the server's certificate, and those that clients must show."""

import logging
import ssl
from pathlib import Path
from typing import Any

import grpc

from engine.errors import StartupError

logger = logging.getLogger(__name__)


def server_credentials(cert: Path, key: Path, client_ca: Path | None) -> Any:
    """Credentials for a port; new connections get a renewed certificate as soon as its files have changed.

    Args:
        cert: The server's certificate chain, PEM.
        key: The key of that certificate, PEM.
        client_ca: Certificates, PEM; clients must show one that these have signed. None: clients show none.

    Raises:
        StartupError: When a file can't be read, is no PEM, or key and certificate don't fit together.
    """
    files = [path for path in (cert, key, client_ca) if path]
    stamps = [_stamps(files)]

    def read() -> Any:
        _check(cert, key, client_ca)
        pair = (key.read_bytes(), cert.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], client_ca.read_bytes() if client_ca else None)

    def renewed() -> Any:
        """Called by gRPC for each connection; None keeps what there is."""
        now = _stamps(files)
        if now == stamps[0]:
            return None
        try:
            configuration = read()
        except StartupError as error:
            logger.error("%s; connections go on with the old certificate", error)
            return None
        finally:
            stamps[0] = now
        logger.info("new certificate from %s", cert)
        return configuration

    return grpc.dynamic_ssl_server_credentials(read(), renewed, require_client_authentication=client_ca is not None)


def _check(cert: Path, key: Path, client_ca: Path | None) -> None:
    """Lets OpenSSL read the files, whose errors say more than gRPC's."""
    files = {"--tls-cert": cert, "--tls-key": key, "--tls-client-ca": client_ca}
    for flag, path in files.items():
        if path is None:
            continue
        try:
            path.read_bytes()
        except OSError as error:
            raise StartupError(f"{flag} {path} can't be read ({error.strerror})") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A key with a passphrase would be asked for at the terminal.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise StartupError(
            f"--tls-cert {cert} and --tls-key {key} can't be used ({reason}); both must be PEM, and belong together"
        ) from None
    if client_ca:
        try:
            context.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise StartupError(f"--tls-client-ca {client_ca} has no certificates in PEM ({reason})") from None


def _stamps(files: list[Path]) -> list[tuple[int, int, int] | None]:
    """Change when a file does."""
    return [_stamp(path) for path in files]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
