"""What a run folder holds that follows from its weights and from faces: samples, prior and attribute directions.

`trainer.training` writes them when training ends; `own_labels` computes directions anew, and adds some for labels of
the user's own. Before the prior of fresh weights is written, their latents are standardised. Directions and prior
belong to the weights whose latents they were computed from, so their files name these, and what belongs to other
weights is never kept.

Shapes: N images, D latent_dim, A attributes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from trainer import run_folder
from trainer.artifacts.directions import Direction, directions_of, load_directions, save_directions
from trainer.artifacts.encode import encode
from trainer.artifacts.model_card import write_card
from trainer.artifacts.prior import Floats, fit_priors, moments, save_priors
from trainer.config import Kind
from trainer.data import FaceData
from trainer.hardware.device import Placement
from trainer.model import VAE
from trainer.run_folder import CARD, DIRECTIONS, MODEL, PRIOR, SAMPLES, belongs, sha256_of

logger = logging.getLogger(__name__)

NUM_SAMPLES = 512
"""Held-out images kept in the run folder."""
_STANDARD = 1e-3
"""Latents are standardised whose means and deviations are off by no more."""
MAX_LISTED = 8
"""Attributes that a message names; of more, it gives the number."""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MAX_LISTED else f"{len(names)} attributes"


def complete(
    folder: Path, place: Placement, data: FaceData, kind: Kind, *, directions_anew: bool = False
) -> str | None:
    """Writes what a finished run lacks: all of it after training, the rest after an interruption or in an old run.

    With `directions_anew` the directions of its data are computed again, as another kind is asked for.

    Returns:
        What became of the directions, see `write_directions`; None if nothing was lacking.

    Raises:
        RunError: latents are not finite, or a file cannot be written.
    """
    model_sha256 = sha256_of(folder / MODEL)
    lacks_samples = not (folder / SAMPLES).exists()
    lacks_prior = not belongs(folder / PRIOR, model_sha256)
    lacks_directions = directions_anew or not belongs(folder / DIRECTIONS, model_sha256)
    if not (lacks_samples or lacks_prior or lacks_directions):
        if not (folder / CARD).exists():
            write_card(folder)
        return None
    if lacks_samples:
        write_samples(folder, data)
    rows, model = data.rows("train"), place.module(run_folder.load_model(folder))
    mu = write_prior(folder, model, place, data) if lacks_prior else encode(model, data.images, rows, place)[0]
    labels, attributes = data.index.labels[rows], data.index.attributes
    found = directions_of(mu, labels, attributes, kind) if lacks_directions else []
    return write_directions(folder, found, mu.shape[1])


def write_samples(folder: Path, data: FaceData) -> None:
    """Writes the first `NUM_SAMPLES` held-out images.

    Raises:
        RunError: the file cannot be written.
    """
    rows = np.concatenate([data.rows("val"), data.rows("test")])[:NUM_SAMPLES]
    images = {"images": np.ascontiguousarray(data.images[rows])}
    run_folder.write_atomically(folder / SAMPLES, lambda file: save_file(images, file))


def write_prior(folder: Path, model: VAE, place: Placement, data: FaceData) -> Floats:
    """Writes the prior that fits the train split's posteriors; fresh weights have their latents standardised first.

    Weights are fresh that have neither prior nor directions yet. Directions, perhaps of the user's own labels, would be
    of no use to other latents. The model changes with its weights. Gives mu of the train split, (N, D).

    Raises:
        RunError: latents are not finite, or a file cannot be written.
    """
    rows, model_sha256 = data.rows("train"), sha256_of(folder / MODEL)
    mu, log_var = encode(model, data.images, rows, place)
    fresh = not any(belongs(folder / name, model_sha256) for name in (PRIOR, DIRECTIONS))
    if fresh and _standardise(model, mu, log_var):
        run_folder.save_model(folder, model)
        model_sha256 = sha256_of(folder / MODEL)
        # Not shifted and scaled here: computed again from the weights, the prior is the same to the last bit.
        mu, log_var = encode(model, data.images, rows, place)
    priors = fit_priors(mu, log_var)
    run_folder.write_atomically(folder / PRIOR, lambda file: save_priors(file, priors, len(mu), model_sha256))
    kind = f"a mixture of {len(priors['weights'])} Gaussians" if "weights" in priors else "a Gaussian"
    logger.info("prior: %s, fitted to the latents of %d training images", kind, len(mu))
    return mu


def _standardise(model: VAE, mu: Floats, log_var: Floats) -> bool:
    """Gives every latent mean 0 and variance 1 over the posteriors, (N, D); says whether there was anything to change.

    Images and reconstructions stay what they are. Of all shifts and scales of the latents this one has the least KL to
    N(0, I), which training with a small KL weight doesn't get to, and without which draws from N(0, I) are no faces.
    """
    mean, std = moments(mu, log_var)
    if max(np.abs(mean).max(), np.abs(std - 1).max()) < _STANDARD:
        return False
    model.shift_and_scale_latents(torch.from_numpy(mean), torch.from_numpy(std))
    return True


def write_directions(
    folder: Path, found: Sequence[Direction], latent_dim: int, *, without: Sequence[str] = (), split: str = "train"
) -> str:
    """Writes directions beside those of the run's present weights, and the model card, which names them.

    Args:
        folder: the run folder.
        found: new directions; one of a name that the run has takes its place.
        latent_dim: D.
        without: names of directions that do not stay.
        split: images that the new ones were computed from.

    Returns:
        Which were added, replaced (computed again), kept as they were, and dropped, for people.

    Raises:
        RunError: the file cannot be read or written.
    """
    path, model_sha256 = folder / DIRECTIONS, sha256_of(folder / MODEL)
    stored, metadata = load_directions(path)
    before, new = ({direction.name: direction for direction in directions} for directions in (stored, found))
    left = [name for name in before if name not in new and name not in without]
    outdated = [] if belongs(path, model_sha256) else left
    if outdated:
        logger.warning(
            "%s: of other weights, so dropped; make anew from the labels or folders that they came from, with "
            "`%s --labels CSV`, or `--with A --without B --name NAME`",
            *(", ".join(outdated), run_folder.directions_command(folder)),
        )
    kept = [name for name in left if name not in outdated]
    rows = [*({name: before[name] for name in before if name in kept or name in new} | new).values()]
    splits = [*(metadata.get("split", "").split(", ") if kept else []), *([split] if found or not kept else [])]
    joined = ", ".join(dict.fromkeys(splits))
    run_folder.write_atomically(path, lambda file: save_directions(file, rows, latent_dim, joined, model_sha256))
    write_card(folder)
    changes = {
        "added": [name for name in new if name not in before],
        "replaced": [name for name in new if name in before],
        "kept": kept,
        "dropped": [*without, *outdated],
    }
    return "; ".join(f"{change} {_listed(names)}" for change, names in changes.items() if names) or "none"
