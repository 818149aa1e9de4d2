"""The version of this software: for the `--version` of every command, and for clients that ask."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

NAME = "dfc-vae"


def version_here() -> str:
    """The installed version; "" where it is run from its sources."""
    try:
        return version(NAME)
    except PackageNotFoundError:
        return ""


def tell_version(arguments: Sequence[str]) -> bool:
    """Prints the version where a command line asks for nothing else; whether it did."""
    if list(arguments) != ["--version"]:
        return False
    known = version_here()
    print(f"{NAME} {known}" if known else f"{NAME}, not installed: run from its sources")
    return True
