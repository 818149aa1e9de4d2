"""The version of this software, for the `--version` of every command."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def tell_version(arguments: Sequence[str]) -> bool:
    """Prints the version where a command line asks for nothing else; whether it did."""
    if list(arguments) != ["--version"]:
        return False
    try:
        print(f"dfc-vae {version('dfc-vae')}")
    except PackageNotFoundError:
        print("dfc-vae, not installed: run from its sources")
    return True
