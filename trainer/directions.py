"""Attribute directions: mean mu of images that have an attribute minus mean mu of those that do not (seed; paper, 4.3).

The paper takes means of sampled z over 1,000 images a side; here they are of posterior means over the whole split.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from trainer.model import VAE

logger = logging.getLogger(__name__)

MIN_IMAGES = 20
"""Fewest images on either side of an attribute for its direction to be kept."""


@dataclass(frozen=True)
class Direction:
    """One attribute's direction.

    Attributes:
        name: the attribute.
        vector: (D,) float32, mean difference of mu.
        positives: images that have the attribute.
        negatives: images that do not.
    """

    name: str
    vector: NDArray[np.float32]
    positives: int
    negatives: int


@torch.no_grad()
def encode_rows(
    model: VAE,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    to_tensor: Callable[[NDArray[np.uint8]], Tensor],
    batch_size: int = 128,
) -> NDArray[np.float32]:
    """Posterior means of some rows of a packed array, in FP32 and evaluation mode.

    Args:
        model: the VAE; its mode is left as it was.
        images: (N, S, S, 3) uint8.
        rows: which of them, (R,).
        to_tensor: brings (B, S, S, 3) uint8 to the model's device as (B, 3, S, S) float in [0, 1].
        batch_size: images at a time.

    Returns:
        (R, D) float32.
    """
    training = model.training
    model.eval()
    parts = [
        model.encoder(to_tensor(images[rows[start : start + batch_size]])).mu.float().cpu().numpy()
        for start in range(0, len(rows), batch_size)
    ]
    model.train(training)
    return np.concatenate(parts)


def mean_differences(
    mu: NDArray[np.float32], labels: NDArray[np.bool_], attributes: tuple[str, ...]
) -> list[Direction]:
    """The direction of every attribute with at least `MIN_IMAGES` images on either side; others are left out, logged.

    Args:
        mu: (N, D) posterior means.
        labels: (N, A) which image has which attribute.
        attributes: their A names.
    """
    directions = []
    for name, has in zip(attributes, labels.T, strict=True):
        positives, negatives = int(has.sum()), int((~has).sum())
        if min(positives, negatives) < MIN_IMAGES:
            logger.warning(
                "no direction for %s: %d images have it and %d do not; each side needs %d",
                *(name, positives, negatives, MIN_IMAGES),
            )
            continue
        difference = mu[has].mean(0, dtype=np.float64) - mu[~has].mean(0, dtype=np.float64)
        directions.append(Direction(name, difference.astype(np.float32), positives, negatives))
    return directions


def save_directions(path: Path, directions: list[Direction], latent_dim: int, split: str) -> None:
    """Writes directions.safetensors.

    One tensor `directions` (A, D) float32; metadata `names`, `positives`, `negatives` (JSON lists, one entry a row) and
    `split`, the one that the means were taken over. `engine.latents.Directions` reads it.
    """
    vectors = np.array([d.vector for d in directions], np.float32).reshape(len(directions), latent_dim)
    metadata = {
        "names": json.dumps([d.name for d in directions]),
        "positives": json.dumps([d.positives for d in directions]),
        "negatives": json.dumps([d.negatives for d in directions]),
        "split": split,
    }
    save_file({"directions": vectors}, path, metadata)
