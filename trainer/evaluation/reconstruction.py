"""How close reconstructions come to the images: pixels, structure, LPIPS, and distances of VGG19's activations.

Shapes: N images, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from tqdm import tqdm

from trainer.evaluation.encoded_run import EncodedRun, Images
from trainer.evaluation.identity import Recogniser, similarity
from trainer.evaluation.networks import Features, MetricNetwork
from trainer.evaluation.skipped import attempt
from trainer.hardware.device import Placement

BATCH_IMAGES = 32
IDENTITY_IMAGES = 300
LPIPS_SIDE = 64
"""AlexNet's poolings leave nothing of smaller images."""


def measure(
    encoded: EncodedRun,
    vgg: MetricNetwork[Features],
    lpips: MetricNetwork[nn.Module],
    recogniser: MetricNetwork[Recogniser],
) -> dict[str, Any]:
    """Compares the test split with its reconstructions from mu.

    Returns:
        `split`, what `pixel_metrics` gives, and under `lpips`, `features` and `identity` what `lpips_distance`,
        `feature_distance` and `identity_kept` give, or why they are skipped.
    """
    pair = (encoded.images, encoded.reconstructions)
    return {
        "split": "test",
        **pixel_metrics(*pair, encoded.place),
        "lpips": attempt(lambda: lpips_distance(lpips.get(), lpips.description, *pair, encoded.place)),
        "features": attempt(lambda: feature_distance(vgg.get(), vgg.description, *pair, encoded.place)),
        "identity": attempt(lambda: identity_kept(recogniser.get(), recogniser.description, *pair)),
    }


def _batches(place: Placement, what: str, *sets: Images) -> Iterator[tuple[Tensor, ...]]:
    """Some of each set in turn, (B, 3, S, S) in [0, 1] on the device."""
    for start in tqdm(range(0, len(sets[0]), BATCH_IMAGES), what, unit="batch", delay=3, leave=False, disable=None):
        yield tuple(place.images(images[start : start + BATCH_IMAGES]) for images in sets)


def pixel_metrics(originals: Images, reconstructions: Images, place: Placement) -> dict[str, Any]:
    """PSNR and SSIM on the scale [0, 1], each of one image, then averaged.

    SSIM is that of Wang et al. (2004): an 11x11 Gaussian window of sigma 1.5, over the colour channels alike.

    Args:
        originals: (N, S, S, 3) uint8.
        reconstructions: the same shape.
        place: where to compute.

    Returns:
        `images`; `psnr_db`, capped at 99 for images that are the same; `psnr_db_quantiles` (`p5`, `median`, `p95` over
        images); `ssim`.
    """
    psnr, ssim = [], []
    for truth, ours in _batches(place, "comparing pixels", originals, reconstructions):
        psnr.append(peak_signal_noise_ratio(ours, truth, data_range=1.0, reduction="none", dim=(1, 2, 3)))
        similarity = structural_similarity_index_measure(ours, truth, data_range=1.0, reduction="none")
        assert isinstance(similarity, torch.Tensor)  # a pair where more is asked for
        ssim.append(similarity.reshape(-1))
    decibels = torch.cat(psnr).clamp(max=99.0).cpu().numpy()
    low, median, high = np.percentile(decibels, [5, 50, 95])
    return {
        "images": len(originals),
        "psnr_db": float(decibels.mean()),
        "psnr_db_quantiles": {"p5": float(low), "median": float(median), "p95": float(high)},
        "ssim": float(torch.cat(ssim).mean()),
    }


@torch.no_grad()
def lpips_distance(
    network: nn.Module, description: str, originals: Images, reconstructions: Images, place: Placement
) -> dict[str, Any]:
    """LPIPS (Zhang et al., arXiv 1801.03924), averaged over images; 0 for images that are the same.

    Images smaller than AlexNet's poolings can take are enlarged to 64 pixels first, which is said.

    Args:
        network: what `networks.lpips` gives.
        description: of its weights.
        originals: (N, S, S, 3) uint8.
        reconstructions: the same shape.
        place: where to compute.

    Returns:
        `lpips`, `network`, `images`, `image_size` at which they were compared.
    """
    network = network.to(place.device)
    distances, side = [], max(LPIPS_SIDE, originals.shape[1])
    for pair in _batches(place, "LPIPS", originals, reconstructions):
        truth, ours = (nn.functional.interpolate(images, size=side, mode="bilinear") for images in pair)
        distances.append(network(ours, truth, normalize=True).reshape(-1))
    return {
        "lpips": float(torch.cat(distances).mean()),
        "network": description,
        "images": len(originals),
        "image_size": side,
    }


def identity_kept(network: Recogniser, description: str, originals: Images, reconstructions: Images) -> dict[str, Any]:
    """How much a face recognition network finds reconstructions to be the same persons.

    Args:
        network: what `identity.recogniser` gives.
        description: of it.
        originals: (N, S, S, 3) uint8; the first `IDENTITY_IMAGES` are compared.
        reconstructions: the same shape.

    Returns:
        `similarity`: mean cosine similarity of an image and its reconstruction; `different_faces`: of an image and the
        next one, to compare with; `network`, `images`.
    """
    originals, reconstructions = originals[:IDENTITY_IMAGES], reconstructions[:IDENTITY_IMAGES]
    return {
        "similarity": float(similarity(network, originals, reconstructions).mean()),
        "different_faces": float(similarity(network, originals, np.roll(originals, 1, axis=0)).mean()),
        "network": description,
        "images": len(originals),
    }


def feature_distance(
    features: Features, source: str, originals: Images, reconstructions: Images, place: Placement
) -> dict[str, Any]:
    """Mean squared distances of VGG19 activations: the paper's perceptual loss as a measure (section 3.2).

    Args:
        features: the network, as trained, its activations not scaled.
        source: of its weights.
        originals: (N, S, S, 3) uint8.
        reconstructions: the same shape.
        place: where to compute.

    Returns:
        `mse`, by tap, on the activations' own scale; `relative`, by tap: that over the mean square of the originals'
        activations, which another set of weights of another scale leaves alike; `network`, `images`, `arithmetic`.
    """
    errors, squares = (torch.zeros(len(features.taps), dtype=torch.float64) for _ in range(2))
    for truth, ours in _batches(place, "VGG19 distances", originals, reconstructions):
        share = len(truth) / len(originals)
        pairs = list(zip(features.maps(truth), features.maps(ours), strict=True))
        errors += share * torch.tensor([float((a - b).square().mean()) for a, b in pairs])
        squares += share * torch.tensor([float(a.square().mean()) for a, _ in pairs])
    return {
        "mse": dict(zip(features.taps, errors.tolist(), strict=True)),
        "relative": dict(zip(features.taps, (errors / squares.clamp(min=1e-12)).tolist(), strict=True)),
        "network": f"VGG19 at {', '.join(features.taps)}; {source}",
        "images": len(originals),
        "arithmetic": str(place.dtype).removeprefix("torch."),
    }
