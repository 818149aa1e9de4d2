"""The software that a bundle was built or measured with."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain

from engine.backends import BACKENDS

_PACKAGES = (
    "dfc-vae",
    "torch",
    "onnx",
    *chain.from_iterable(row.packages for row in BACKENDS.values()),
    "nncf",
    "cuda-bindings",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions by package name, of Python and of those packages behind an engine that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
