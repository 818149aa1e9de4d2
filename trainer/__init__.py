"""Training: data, model, loss, loop, attribute directions, and the judging of a run.

From Python: `from trainer import VAE, presets, train`; see `trainer.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import VAE, train

__all__ = ["VAE", "train"]


def __getattr__(name: str) -> Any:
    """The Python interface, which needs torch: loaded when it is asked for, as the command line loads it late."""
    if name not in __all__:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    from trainer.extras import missing  # noqa: PLC0415

    if sentence := missing("train"):
        raise ImportError(sentence)
    from trainer import api  # noqa: PLC0415

    return getattr(api, name)
