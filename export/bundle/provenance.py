"""The software that a bundle was built or measured with."""

import platform
from itertools import chain

from engine.backends import BACKENDS
from engine.proof.machine import versions_of

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
    return {"python": platform.python_version(), **versions_of(_PACKAGES)}
