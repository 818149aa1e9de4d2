"""A finished run folder, read and checked: everything that an export or a comparison needs of it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from engine.arrays import Bytes
from engine.bundle import DIRECTIONS, PRIOR, sha256_of
from engine.errors import BundleError, DirectionsError
from engine.latents import Directions, Prior, load_priors
from export.errors import InputError
from trainer.config import TrainConfig
from trainer.model import VAE
from trainer.run_folder import CONFIG, MODEL, SAMPLES, belongs, load_config, load_model, mend_of

_RESUME = "finish the training with `python -m trainer train --resume`"


@dataclass(frozen=True)
class Run:
    """One trained model and what belongs to it."""

    path: Path  # the run folder
    config: TrainConfig
    resolved: dict[str, Any]  # what that came to on the machine that trained (device, data, VGG weights)
    model: VAE  # in evaluation mode, on the CPU, float32
    model_sha256: str  # of its file of weights, hex
    directions: Directions
    prior: Prior  # what random faces are drawn from
    samples: Bytes  # held-out real images, [N, S, S, 3] RGB, N at least 2

    def split_samples(self, *, calibrates: bool) -> tuple[Bytes, Bytes]:
        """The samples that parity is measured on, and those that INT8 is calibrated on.

        A run holds no images of the train split. So where INT8 takes part they are halved, in turns; without it
        everything is measured on all of them.
        """
        if not calibrates:
            return self.samples, self.samples[:0]
        return np.ascontiguousarray(self.samples[1::2]), np.ascontiguousarray(self.samples[::2])

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Reads a run folder.

        Raises:
            InputError: directions, prior or samples are missing, torn, of other weights, or do not fit the model; or a
                file may not be read.
            RunError: there is no run, or its configuration or weights cannot be read.
        """
        _require_readable(path)
        config, resolved = load_config(path)
        if not isinstance(resolved, dict):
            raise InputError(f"{path / CONFIG}: `resolved` is {resolved!r}, must be an object; copy the run again")
        model = load_model(path)
        model_sha256 = sha256_of(path / MODEL)
        directions = _load_directions(path / DIRECTIONS, config.model.latent_dim)
        if not belongs(path / DIRECTIONS, model_sha256):
            raise InputError(f"{path / DIRECTIONS} is of other weights than {path / MODEL}; {mend_of(path)}")
        return cls(
            path=path,
            config=config,
            resolved=resolved,
            model=model,
            model_sha256=model_sha256,
            directions=directions,
            prior=_load_prior(path / PRIOR, config.model.latent_dim, model_sha256),
            samples=_load_samples(path / SAMPLES, config.model.image_size),
        )


def _require_readable(run: Path) -> None:
    """Refuses files without permission, of which safetensors would say that they are not there."""
    for path in (run / CONFIG, run / MODEL, run / DIRECTIONS, run / PRIOR, run / SAMPLES):
        if path.is_file() and not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read (Permission denied); have its owner run `chmod a+r {path}`")


def _load_directions(path: Path, latent_dim: int) -> Directions:
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}: its training has not reached them; {_RESUME}")
    try:
        directions = Directions.load(path)
    except DirectionsError as error:
        raise InputError(f"{error}; {_RESUME}") from error
    if directions.latent_dim != latent_dim:
        raise InputError(
            f"{path} has directions of {directions.latent_dim} values, the model has {latent_dim} latents; "
            f"they are of another run: {_RESUME}"
        )
    return directions


def _load_prior(path: Path, latent_dim: int, model_sha256: str) -> Prior:
    run = path.parent
    if not path.is_file():  # as in runs of before the trainer fitted it
        raise InputError(f"{run} has no {PRIOR}, which new faces are drawn from; {mend_of(run)}")
    try:
        prior = next(iter(load_priors(path).values()))
    except BundleError as error:
        raise InputError(f"{error}; {mend_of(run)}") from error
    if prior.latent_dim != latent_dim or not belongs(path, model_sha256):
        raise InputError(f"{path} is of other weights than those of the run; {mend_of(run)}")
    return prior


def _load_samples(path: Path, image_size: int) -> Bytes:
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}, the images that parity is measured on; {_RESUME}")
    try:
        images = load_file(path)["images"]
    except KeyError as error:
        raise InputError(f"{path} has no tensor {error}; {_RESUME}") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}); {_RESUME}") from error
    expected = (image_size, image_size, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or len(images) < 2:
        raise InputError(
            f"{path}: `images` is {images.dtype} {list(images.shape)}, must be uint8 "
            f"[2 or more, {image_size}, {image_size}, 3]; {_RESUME}"
        )
    return images.copy()  # safetensors hands out read-only memory, which torch cannot share
