"""Optional packages: whoever needs some that are not installed says which extra has them, instead of a traceback."""

import sys
from importlib.util import find_spec
from typing import Literal

Extra = Literal["train", "retarget", "bench"]

MODULES: dict[Extra, tuple[str, ...]] = {
    "train": (
        "torch", "torchvision", "onnx", "filelock", "jinja2", "matplotlib", "psutil", "sklearn", "scipy", "tensorboard",
        "torch_fidelity", "torchmetrics",
    ),
    "retarget": ("onnx",),
    "bench": ("hpack", "hypothesis", "psutil"),
}  # fmt: skip
"""What each extra of pyproject.toml has that its commands cannot do without."""


def missing(extra: Extra) -> str | None:
    """The first package of an extra that is not installed, and how to install it; None if all are there."""
    absent = next((name for name in MODULES[extra] if not _importable(name)), None)
    return absent and f"{absent} is not installed; pip install 'dfc-vae[{extra}]'"


def require(extra: Extra) -> None:
    """Ends the command with exit code 2 and one sentence where an extra is missing.

    Commands that import optional packages at their top call this before: under `if __name__ == "__main__"`, so that
    importing them as modules raises ImportError, as any module does.
    """
    if sentence := missing(extra):
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(2)


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # the package that it lies in is missing, or it was made unimportable
        return False
