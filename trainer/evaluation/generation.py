"""How much decoded samples look like the data as a whole: Fréchet distances between sets of images.

A set of images is (N, S, S, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from engine.latents import Gaussian
from trainer.evaluation.encoded_run import EncodedRun, Floats, Images, batches
from trainer.evaluation.networks import Features, MetricNetworks
from trainer.evaluation.skipped import SkippedError, attempt
from trainer.hardware.device import Placement

BATCH_IMAGES = 32
MIN_FID_IMAGES = 2048
"""As many as Inception's features: of fewer images the covariance is singular, and the distance means nothing."""


def measure(encoded: EncodedRun, networks: MetricNetworks, seed: int) -> dict[str, Any]:
    """Fréchet distances of four sets of images (`image_sets`) to the test split.

    Returns:
        `split`, `seed`, and under `fid` and `frechet_vgg19` what `fid` and `frechet_on_features` give, or why they are
        skipped.
    """
    vgg, inception = networks.vgg, networks.inception
    real, place = encoded.images, encoded.place
    enough = len(real) >= MIN_FID_IMAGES
    sets = image_sets(encoded, seed) if vgg.network is not None or (inception.network is not None and enough) else {}

    def measure_fid() -> dict[str, Any]:
        metric = inception.get()
        if not enough:
            raise SkippedError(
                f"needs {MIN_FID_IMAGES:,} test images, and there are {len(real):,}: of fewer, its covariance is "
                "singular; judge on a data set with more"
            )
        return fid(metric, inception.description, real, sets, place)

    return {
        "split": "test",
        "seed": seed,
        "fid": attempt(measure_fid),
        "frechet_vgg19": attempt(lambda: frechet_on_features(vgg.get(), vgg.description, real, sets, place)),
    }


def prior_latents(count: int, latent_dim: int, seed: int) -> Floats:
    """Draws from N(0, I), (count, D): what the seed document and the paper decode."""
    return Gaussian.standard(latent_dim).draw(count, seed)


def image_sets(encoded: EncodedRun, seed: int) -> dict[str, Images]:
    """The sets that are compared with the test split's images, each of as many images as that has, or fewer.

    Returns:
        `prior`: decoded from N(0, I). `fitted`: decoded from the run's own prior, fitted to the train split's
        posteriors. Both are drawn as the server draws them. Where the aggregate posterior is far from N(0, I), their
        difference is what that costs.
        `reconstructions`: of the test split. `train`: images of the train split, drawn without repetition: the floor,
        what real faces of other people score.
    """
    count = len(encoded.rows)
    train = np.sort(np.random.default_rng(seed).permutation(encoded.train_rows)[:count])
    return {
        "prior": encoded.decode(prior_latents(count, encoded.mu.shape[1], seed)),
        "fitted": encoded.decode(encoded.prior.draw(count, seed)),
        "reconstructions": encoded.reconstructions,
        "train": encoded.data.images[train],
    }


def frechet_on_features(
    features: Features, source: str, real: Images, sets: dict[str, Images], place: Placement
) -> dict[str, Any]:
    """Fréchet distances on VGG19's deepest tap, averaged over the picture. Not FID, and not comparable with it.

    Returns:
        `distance` by set, `images` by set and of `test`, `network`, `arithmetic`.
    """
    metric = FrechetInceptionDistance(features, reset_real_features=False)
    network = (
        f"VGG19 at {features.taps[-1]}, averaged over the picture to {features.num_features} features; {source}; "
        "not comparable with FID"
    )
    arithmetic = str(place.dtype).removeprefix("torch.")
    return _distances(metric, place.images, real, sets, place) | {"network": network, "arithmetic": arithmetic}


def fid(
    metric: FrechetInceptionDistance, description: str, real: Images, sets: dict[str, Images], place: Placement
) -> dict[str, Any]:
    """FID (Heusel et al., arXiv 1706.08500): Inception's features, images enlarged to 299 pixels.

    It falls with the number of images, so that only values of equal counts are comparable; it is usually given for
    10,000 to 50,000.

    Returns:
        `distance` by set, `images` by set and of `test`, `network`.
    """

    def levels(images: Images) -> Tensor:  # (B, 3, S, S) uint8
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(place.device)

    return _distances(metric, levels, real, sets, place) | {"network": description}


def _distances(
    metric: FrechetInceptionDistance,
    prepare: Callable[[Images], Tensor],
    real: Images,
    sets: dict[str, Images],
    place: Placement,
) -> dict[str, Any]:
    def feed(name: str, images: Images) -> None:
        for some in batches(len(images), BATCH_IMAGES, f"features of {name}"):
            metric.update(prepare(images[some]), real=name == "test")

    if len(real) < 2:
        raise SkippedError(f"needs two test images, and there is {len(real)}; move more into the test split")
    metric = metric.to(place.device)
    feed("test", real)
    distance: dict[str, float] = {}
    for name, images in sets.items():
        feed(name, images)
        distance[name] = max(0.0, float(metric.compute()))  # rounding takes equal sets a little below zero
        metric.reset()
    counts = {"test": len(real)} | {name: len(images) for name, images in sets.items()}
    return {"distance": distance, "images": counts}
