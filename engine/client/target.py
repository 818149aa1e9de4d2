"""Where a server is: gRPC targets."""

import ipaddress
import re

_HOST_PORT = re.compile(r"(\[[^\[\]]+\]|[^\[\]:/\s]+):(\d+)")


def is_local(target: str) -> bool:
    """Whether a target names this machine."""
    if target.startswith("unix"):
        return True
    host = _without_scheme(target).rpartition(":")[0].strip("[]") or _without_scheme(target)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def fault_of(target: str) -> str | None:
    """What keeps a target from being HOST:PORT (or that in gRPC's longer spelling), and how to mend it."""
    if target.startswith("unix"):
        return None
    return next(filter(None, map(_fault_of_place, _without_scheme(target).split(","))), None)


def _fault_of_place(place: str) -> str | None:
    if match := _HOST_PORT.fullmatch(place):
        return None if 0 < int(match[2]) < 65536 else f"the port must be from 1 to 65535, not {match[2]}"
    if "://" in place:
        return f"it takes HOST:PORT; leave out {place.partition('://')[0]}://"
    if place.count(":") > 1 and "[" not in place:
        return "an IPv6 address goes in brackets: [HOST]:PORT, for example [::1]:50051"
    if place and not re.search(r"[:/\s]", place):
        return f"it has no port; give HOST:PORT, for example {place}:50051"
    return "it takes HOST:PORT, for example localhost:50051"


def _without_scheme(target: str) -> str:
    return re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", target)
