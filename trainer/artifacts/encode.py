"""Packed images to the parameters of their posteriors, and latents to images.

Shapes: N images, R rows, S image side, D latent_dim.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from trainer.hardware.device import Placement
from trainer.model import VAE

BATCH_IMAGES = 128


def batches(count: int, what: str, size: int = 32) -> Iterator[slice]:
    """Slices of `size` at most that cover `count` images, with a progress bar where it takes a few seconds."""
    for start in tqdm(range(0, count, size), what, unit="batch", delay=3, leave=False, disable=None):
        yield slice(start, start + size)


@torch.no_grad()
def encode(
    model: VAE, images: NDArray[np.uint8], rows: NDArray[np.int64], place: Placement
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Posterior mu and log_var, (R, D) each, of rows (R,) of packed images (N, S, S, 3): FP32, evaluation mode."""
    mu, log_var = (np.empty((len(rows), model.config.latent_dim), np.float32) for _ in range(2))
    for some in batches(len(rows), "encoding", BATCH_IMAGES):
        mu[some], log_var[some] = (part.cpu().numpy() for part in model.encoder(place.images(images[rows[some]])))
    return mu, log_var


@torch.no_grad()
def decode(decoder: Callable[[Tensor], Tensor], latents: NDArray[np.float32], place: Placement) -> NDArray[np.uint8]:
    """Images (N, S, S, 3) uint8 of latents (N, D), by a decoder to (B, 3, S, S) in [0, 1] on `place`."""
    images = []
    for some in batches(max(1, len(latents)), "decoding", BATCH_IMAGES):  # of no latents, no images of the right shape
        decoded = decoder(torch.from_numpy(latents[some]).to(place.device)).float()
        images.append(decoded.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).cpu().numpy())
    return np.concatenate(images)
