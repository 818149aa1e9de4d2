"""Training: a folder of faces in, a run folder out.

config      what a run computes; `presets` are the named ones, `preflight` checks one before it starts
training    train(), from top to bottom; `train_state` is what a step changes and a checkpoint holds
data        images and labels: found, checked, packed into one file, loaded in batches
model       the VAE
loss        pixels, VGG19 features, KL
optim       Muon and the learning rates
hardware    devices, processes, and what is tuned for them; without the tuning, results are the same
monitoring  what a run tells while it trains
run_folder  the files of a run, and how they are written
artifacts   what is made of a trained model: directions, prior, samples, model card
evaluation  how good a run is; training knows nothing of it
faces       procedural faces, drawn rather than downloaded
api         all of it from Python: `from trainer import VAE, presets, train`
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
