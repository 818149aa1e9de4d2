"""Where the server listens: a host and a port, or a Unix socket, `unix:PATH`."""

import ipaddress
import os
import socket
import stat
from contextlib import closing
from pathlib import Path

from engine.errors import StartupError

_UNIX = "unix:"


def is_unix(host: str) -> bool:
    """Whether it is a Unix socket."""
    return host.startswith(_UNIX)


def is_local(host: str) -> bool:
    """Whether only this machine reaches it; a name that leads nowhere is refused later, with its reason."""
    if is_unix(host):
        return True
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return True
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def target_of(host: str, port: int) -> str:
    """As gRPC writes it."""
    if is_unix(host):
        return f"{_UNIX}{_path_of(host)}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check(host: str, port: int) -> None:
    """Tries it with a plain socket, whose errors say more than gRPC's; the socket of a server that is gone is removed.

    Raises:
        StartupError: When it can't be had.
    """
    try:
        if is_unix(host):
            _check_unix(_path_of(host))
        else:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except (OSError, UnicodeError) as error:
        where, mend = (host, "--host") if is_unix(host) else (f"{host}:{port}", "--host or --port")
        raise StartupError(f"can't listen on {where} ({reason_of(error)}); choose another {mend}") from None


def reason_of(error: OSError | UnicodeError) -> str:
    """Why an address can't be had."""
    return str(error.strerror or error) if isinstance(error, OSError) else "no name of a host"


def _check_unix(path: Path) -> None:
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise OSError("it is there, and no socket")
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        if path.exists():
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError("another server listens there")
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.bind(os.fspath(path))
        path.unlink()


def _path_of(host: str) -> Path:
    return Path(host.removeprefix(_UNIX).removeprefix("//"))
