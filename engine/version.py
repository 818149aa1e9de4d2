"""The version of this software: for the `--version` of every command, and for clients that ask."""

from importlib.metadata import PackageNotFoundError, version

NAME = "dfc-vae"


def version_here() -> str:
    """The installed version; "" where it is run from its sources."""
    try:
        return version(NAME)
    except PackageNotFoundError:
        return ""
