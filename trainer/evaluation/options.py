"""How a run is judged: the flags of `trainer evaluate`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from trainer.errors import ConfigError

Measure = Literal["vgg", "lpips", "fid", "tsne", "kinds", "rescoring", "edits"]
Resizing = Literal["clean", "tensorflow"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is judged."""

    strength: float = 1.5
    """Strength of the judged edits, in lengths of the mean difference."""
    out: Path | None = None
    """Folder for metrics.json, figures/ and report.html; default: the run folder."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace a report of another data set."""
    seed: int = 0
    """Seed of the generated images, of the t-SNE map and of what is shown."""
    vgg_weights: Path | None = None
    """File with VGG19 weights to compare features with; default: the one that the run was trained with, if it is still
    there, else torchvision's, from the hub cache or downloaded."""
    lpips_weights: Path | None = None
    """File with AlexNet or VGG16 weights (torchvision's layout) for LPIPS; default: torchvision's AlexNet."""
    inception_weights: Path | None = None
    """File with Inception weights for FID, torch-fidelity's or clean-fid's; default: torch-fidelity's, from the hub
    cache or downloaded."""
    resizing: Resizing = "clean"
    """How FID enlarges images: clean, bicubic with floats, as clean-fid does, or as TensorFlow did, with which
    torch-fidelity counts and most published values were found."""
    samples: int | None = None
    """Images in each set that FID and the other distances of generation compare; default: as many as test images.
    50,000 is usual for FID, which needs 2,048."""
    reference: Literal["test", "train"] = "test"
    """Split whose images, as many as --samples at most, generated ones are compared with."""
    identity_weights: Path | None = None
    """ONNX file with a face recognition network, in dlib's or SFace's layout (see trainer/evaluation/identity.py), for
    whether reconstructions and edits keep the person; without one, that is skipped."""
    judge: Path | None = None
    """Attribute classifier that judges edits: a classifier.safetensors that an evaluation on the same data left;
    default: the one in the folder that is written to, trained first if there is none."""
    skip: tuple[Measure, ...] = ()
    """Measures to leave out. lpips and fid may download weights, and fid takes minutes on a CPU; kinds
    compares the run's directions with the other kinds, rescoring edits every attribute."""

    def __post_init__(self) -> None:
        if not 0 < self.strength < math.inf:
            raise ConfigError(
                f"--strength {self.strength}: must be above 0, and finite; edits are judged in both directions"
            )
        if self.samples is not None and self.samples < 2:
            raise ConfigError(f"--samples {self.samples}: must be at least 2; FID needs 2,048, and 50,000 are usual")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed {self.seed}: must lie between 0 and {2**32 - 1}")
