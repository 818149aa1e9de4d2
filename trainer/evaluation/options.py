"""How a run is judged: the flags of `trainer evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from trainer.errors import ConfigError

Measure = Literal["vgg", "lpips", "fid", "tsne", "kinds", "rescoring", "edits"]


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
    """File with torch-fidelity's Inception weights for FID; default: downloaded."""
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
        if self.strength <= 0:
            raise ConfigError(f"--strength {self.strength}: must be above 0; edits are judged in both directions")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed {self.seed}: must lie between 0 and {2**32 - 1}")
