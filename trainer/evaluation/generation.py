"""How much decoded samples look like the data as a whole: Fréchet distances, precision and recall of sets of images.

Each network sees the sets one after the other: of 50,000 images only the features of two sets are held at a time. What
is made of the features is torch-fidelity's.

A set of images is (N, S, S, 3) uint8, its features (N, F).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from engine.latents import Gaussian, Prior
from trainer.evaluation.encoded_run import EncodedRun, Floats, Images
from trainer.evaluation.networks import MetricNetworks
from trainer.evaluation.options import Options
from trainer.evaluation.skipped import SkippedError

NEIGHBOURS = 3  # of the manifold that precision and recall are taken by; the paper's
MIN_FID_IMAGES = 2048
"""As many as Inception's features: of fewer images the covariance is singular, and the distance means nothing."""
ROWS = 2048  # distances to all other images are taken of so many at a time


class Network(Protocol):
    """What sees images."""

    def describe(self, images: Images) -> Floats:
        """Features (N, F) of images (N, S, S, 3)."""


def measure(encoded: EncodedRun, networks: MetricNetworks, options: Options) -> dict[str, Any]:
    """How much sets of images (`image_sets`) are like the reference, some of the split that the options name.

    Returns:
        `split`, `seed`, and what `Comparison` found, with `network` and `network_sha256`, or why it is skipped: under
        `fid` (Heusel et al., arXiv 1706.08500) through Inception, with `inception_score`, the `mean` and `deviation`
        over ten parts by set (Salimans et al., arXiv 1606.03498); under `frechet_vgg19` on VGG19's deepest tap; under
        `recognition` on a face recognition network's descriptors: are they people, and as varied as people are?
    """
    count = options.samples or len(encoded.mu)
    real = encoded.data.images[_some(encoded, options.reference, count, options.seed)]
    found: dict[str, Any] = {"split": options.reference, "seed": options.seed}
    comparisons: dict[str, Comparison] = {}
    for key, seer, least in (
        ("fid", networks.inception, MIN_FID_IMAGES),
        ("frechet_vgg19", networks.vgg, 2),
        ("recognition", networks.recogniser, 2),
    ):
        try:
            network = seer.get()
            if min(count, len(real)) < least:
                raise SkippedError(
                    f"needs {least:,} images on both sides, and there are {count:,} samples and {len(real):,} images "
                    f"of the {options.reference} split: of fewer, the covariance is singular; give --samples 50000 and "
                    "--reference train, or judge on more images"
                )
            comparisons[key] = Comparison(network, options.reference, real, least)
            found[key] = comparisons[key].found | seer.about
        except SkippedError as reason:
            found[key] = {"skipped": str(reason)}
    for name, make in image_sets(encoded, options).items() if comparisons else ():
        images = make()
        features = {key: comparison.add(name, images) for key, comparison in comparisons.items()}
        if (seen := features.get("fid")) is not None:
            score = isc_features_to_metric(networks.inception.get().logits(seen))
            mean, deviation = score["inception_score_mean"], score["inception_score_std"]
            found["fid"].setdefault("inception_score", {})[name] = {"mean": mean, "deviation": deviation}
    return found


def image_sets(encoded: EncodedRun, options: Options) -> dict[str, Callable[[], Images]]:
    """The sets that are compared with the reference, each made when it is called for.

    They have as many images as the options say, or as there are test images.

    Returns:
        `prior`: decoded from N(0, I), as the seed document and the paper do. `fitted` and `mixture`: decoded from the
        run's own priors, fitted to the train split's posteriors. All are drawn as the server draws them. Where the
        aggregate posterior is far from N(0, I), their difference is what that costs.
        `reconstructions`: of the test split. `train`, or `test` where the reference is of the train split: images of
        that split, drawn without repetition: the floor, what real faces of other people score.
    """
    count = options.samples or len(encoded.mu)
    priors: dict[str, Prior] = {"prior": Gaussian.standard(encoded.mu.shape[1]), **encoded.priors}

    def drawn(prior: Prior) -> Images:
        return encoded.decode(prior.draw(count, options.seed))

    floor = "train" if options.reference == "test" else "test"
    return {
        **{name: partial(drawn, prior) for name, prior in priors.items()},
        "reconstructions": lambda: encoded.reconstructions[:count],
        floor: lambda: encoded.data.images[_some(encoded, floor, count, options.seed)],
    }


def _some(encoded: EncodedRun, split: str, count: int, seed: int) -> Any:
    """Rows of a split, in order, as many as `count` at most: (R,)."""
    rows = encoded.data.rows(split)
    return rows if len(rows) <= count else np.sort(np.random.default_rng(seed).permutation(rows)[:count])


class Comparison:
    """Sets of images beside real ones, named `reference`, as one network sees them; with `least` images in each.

    What is `found`, by set: `distance`, Fréchet's, of the Gaussians that fit its features and those of the real images;
    `precision` and `recall` (Kynkäänniemi et al., arXiv 1904.06991), the share of its images that could be real, and
    the reverse; and `images`, also of the real ones.
    """

    def __init__(self, network: Network, reference: str, real: Images, least: int = 2) -> None:
        self._network, self._least = network, least
        self._real = torch.from_numpy(network.describe(real))
        self._statistics = fid_features_to_statistics(self._real)
        self.found: dict[str, dict[str, Any]] = {"distance": {}, "precision": {}, "recall": {}}
        self.found["images"] = {reference: len(real)}

    def add(self, name: str, images: Images) -> Tensor | None:
        """Compares one more set, and gives its features (N, F); None where it is left out."""
        if len(images) < self._least:
            return None
        features = torch.from_numpy(self._network.describe(images))
        fewest = min(len(features), len(self._real))
        how = {"prc_neighborhood": min(NEIGHBOURS, fewest - 1), "prc_batch_size": ROWS, "save_cpu_ram": True}
        shares = prc_features_to_metric(features, self._real, verbose=False, **how)
        distance = fid_statistics_to_metric(fid_features_to_statistics(features), self._statistics, verbose=False)
        # Rounding takes the distance of equal sets a little below zero.
        self.found["distance"][name] = max(0.0, distance["frechet_inception_distance"])
        self.found["precision"][name], self.found["recall"][name] = shares["precision"], shares["recall"]
        self.found["images"][name] = len(images)
        return features
