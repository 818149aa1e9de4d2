"""The software that a bundle was built or measured with."""

import platform
from itertools import chain

from engine.backends import BACKENDS
from engine.proof.machine import versions_of


def versions() -> dict[str, str]:
    """Versions by package name, of Python and of those packages behind an engine that are installed."""
    runtimes = chain.from_iterable(row.packages for row in BACKENDS.values())
    packages = ("dfc-vae", "torch", "onnx", *runtimes, "nncf", "cuda-bindings", "numpy")
    return {"python": platform.python_version(), **versions_of(packages)}
