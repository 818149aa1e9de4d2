"""How much decoded samples look like the data as a whole: Fréchet distances between sets of images.

A set of images is (N, S, S, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from engine.latents import Gaussian
from trainer.evaluation.encoded_run import EncodedRun, Floats, Images, batches
from trainer.evaluation.identity import Recogniser
from trainer.evaluation.networks import Features, MetricNetworks
from trainer.evaluation.skipped import SkippedError, attempt
from trainer.hardware.device import Placement

BATCH_IMAGES = 32
NEIGHBOURS = 3
"""Of the manifold that precision and recall are taken by; the paper's."""
MIN_FID_IMAGES = 2048
"""As many as Inception's features: of fewer images the covariance is singular, and the distance means nothing."""


def measure(encoded: EncodedRun, networks: MetricNetworks, seed: int) -> dict[str, Any]:
    """How much sets of images (`image_sets`) are like the test split.

    Returns:
        `split`, `seed`, and under `fid`, `frechet_vgg19` and `recognition` what `fid`, `frechet_on_features` and
        `compare_faces` give, or why they are skipped.
    """
    vgg, inception, recogniser = networks.vgg, networks.inception, networks.recogniser
    real, place = encoded.images, encoded.place
    enough = len(real) >= MIN_FID_IMAGES
    needed = vgg.network or recogniser.network or (inception.network if enough else None)
    sets = image_sets(encoded, seed) if needed is not None else {}

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
        "recognition": attempt(lambda: compare_faces(recogniser.get(), recogniser.description, real, sets)),
    }


def image_sets(encoded: EncodedRun, seed: int) -> dict[str, Images]:
    """The sets that are compared with the test split's images, each of as many images as that has, or fewer.

    Returns:
        `prior`: decoded from N(0, I), as the seed document and the paper do. `fitted` and `mixture`: decoded from the
        run's own priors, fitted to the train split's posteriors. All are drawn as the server draws them. Where the
        aggregate posterior is far from N(0, I), their difference is what that costs.
        `reconstructions`: of the test split. `train`: images of the train split, drawn without repetition: the floor,
        what real faces of other people score.
    """
    count = len(encoded.rows)
    train = np.sort(np.random.default_rng(seed).permutation(encoded.train_rows)[:count])
    return {
        "prior": encoded.decode(Gaussian.standard(encoded.mu.shape[1]).draw(count, seed)),
        **{name: encoded.decode(prior.draw(count, seed)) for name, prior in encoded.priors.items()},
        "reconstructions": encoded.reconstructions,
        "train": encoded.data.images[train],
    }


def frechet_on_features(
    features: Features, source: str, real: Images, sets: dict[str, Images], place: Placement
) -> dict[str, Any]:
    """Distances on VGG19's deepest tap, averaged over the picture. Not FID, and not comparable with it.

    Returns:
        What `compare` gives, `network`, `arithmetic`.
    """

    @torch.no_grad()
    def describe(name: str, images: Images) -> Floats:
        some = batches(len(images), BATCH_IMAGES, f"features of {name}")
        parts = [features(place.images(images[each])).float().cpu().numpy() for each in some]
        return np.concatenate(parts) if parts else np.empty((0, features.num_features), np.float32)

    network = (
        f"VGG19 at {features.taps[-1]}, averaged over the picture to {features.num_features} features; {source}; "
        "not comparable with FID"
    )
    arithmetic = str(place.dtype).removeprefix("torch.")
    found = compare(describe("test", real), {name: describe(name, images) for name, images in sets.items()})
    return found | {"network": network, "arithmetic": arithmetic}


def compare_faces(recogniser: Recogniser, source: str, real: Images, sets: dict[str, Images]) -> dict[str, Any]:
    """The same on a face recognition network's descriptors: are they people, and as varied as people are?

    Returns:
        What `compare` gives, `network`.
    """
    found = compare(recogniser.describe(real), {name: recogniser.describe(images) for name, images in sets.items()})
    return found | {"network": source}


def compare(real: Floats, sets: dict[str, Floats]) -> dict[str, Any]:
    """How much sets of features (N, F) are like those of real images.

    Returns:
        By set: `distance`, Fréchet's, of the Gaussians that fit; `precision` and `recall` as `precision_and_recall`;
        and `images`, also of `test`, the real ones.
    """
    metric = FrechetInceptionDistance(_Given(real.shape[1]), reset_real_features=False)
    found = _distances(metric, torch.from_numpy, real, sets, torch.device("cpu"))
    both = {name: precision_and_recall(real, features) for name, features in sets.items()}
    return found | {
        "precision": {name: precision for name, (precision, _) in both.items()},
        "recall": {name: recall for name, (_, recall) in both.items()},
    }


class _Given(nn.Identity):
    """What torchmetrics takes for a network where features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def precision_and_recall(real: Floats, made: Floats) -> tuple[float, float]:
    """Kynkäänniemi et al., arXiv 1904.06991: the share of made images that could be real, and the reverse.

    An image could be of a set if, as its features (N, F) say, it lies no further from some image of that set than this
    one's third nearest neighbour in the set does.
    """

    def share(of: Tensor, within: Tensor) -> float:
        radii = torch.cdist(within, within).kthvalue(min(NEIGHBOURS + 1, len(within)), dim=1).values
        return float((torch.cdist(of, within) <= radii).any(1).float().mean())

    first, second = torch.from_numpy(real), torch.from_numpy(made)
    return share(second, first), share(first, second)


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

    return _distances(metric, levels, real, sets, place.device) | {"network": description}


def _distances(
    metric: FrechetInceptionDistance,
    prepare: Callable[[NDArray[Any]], Tensor],
    real: NDArray[Any],
    sets: Mapping[str, NDArray[Any]],
    device: torch.device,
) -> dict[str, Any]:
    def feed(name: str, images: NDArray[Any]) -> None:
        for some in batches(len(images), BATCH_IMAGES, f"features of {name}"):
            metric.update(prepare(images[some]), real=name == "test")

    if len(real) < 2:
        raise SkippedError(f"needs two test images, and there is {len(real)}; move more into the test split")
    metric = metric.to(device)
    feed("test", real)
    distance: dict[str, float] = {}
    for name, images in sets.items():
        feed(name, images)
        distance[name] = max(0.0, float(metric.compute()))  # rounding takes equal sets a little below zero
        metric.reset()
    counts = {"test": len(real)} | {name: len(images) for name, images in sets.items()}
    return {"distance": distance, "images": counts}
