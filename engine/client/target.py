"""Where a server is: gRPC targets."""

import ipaddress
import os
import re

_HOST_PORT = re.compile(r"(\[[^\[\]]+\]|[^\[\]:/\s]+):(\d+)")
_UNIX = ("unix:", "unix-abstract:")

# In the order in which gRPC looks for them.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


def places_of(target: str) -> list[str]:
    """The addresses that a target lists, mostly a single one."""
    return [target] if target.startswith(_UNIX) else re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", target).split(",")


def is_local(target: str) -> bool:
    """Whether a target names nothing but this machine."""
    return target.startswith(_UNIX) or all(map(_is_loopback, places_of(target)))


def proxy_of(target: str) -> tuple[str, str] | None:
    """The HTTP proxy that gRPC takes from the environment for a target: the variable, and the proxy without secrets."""
    name = next(filter(os.environ.get, _PROXIES), None)
    if name is None or is_local(target):
        return None
    endings = os.environ.get(next(filter(os.environ.get, _EXCEPTIONS), ""), "").split(",")
    if any(_host_of(place).endswith(ending.strip()) for place in places_of(target) for ending in filter(None, endings)):
        return None
    return name, re.sub(r"//[^/@]*@", "//", os.environ[name])


def fault_of(target: str) -> str | None:
    """What keeps a target from being HOST:PORT (or that in gRPC's longer spelling), and how to mend it."""
    if target.startswith(_UNIX):
        scheme, _, path = target.partition(":")
        return None if path.strip("/") else f"it has no path; give {scheme}:PATH, for example {scheme}:/run/dfcvae.sock"
    return next(filter(None, map(_fault_of_place, places_of(target))), None)


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


def _is_loopback(place: str) -> bool:
    host = _host_of(place).lower().removesuffix(".")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(place: str) -> str:
    return place.rpartition(":")[0].strip("[]") or place
