"""How close reconstructions come to the images: pixels, structure, LPIPS, VGG19's activations, identity.

Originals and reconstructions are (N, S, S, 3) uint8 everywhere here, and all means are over the N images.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.artifacts.encode import batches
from trainer.evaluation.encoded_run import EncodedRun, Images
from trainer.evaluation.identity import Recogniser, similarity
from trainer.evaluation.networks import Features, MetricNetworks
from trainer.evaluation.skipped import attempt
from trainer.hardware.device import Placement
from trainer.monitoring.validation import MAX_PSNR

IDENTITY_IMAGES = 300
LPIPS_SIDE = 64  # AlexNet's poolings leave nothing of smaller images


def measure(encoded: EncodedRun, networks: MetricNetworks) -> dict[str, Any]:
    """Compares the test split with its reconstructions from mu.

    Returns:
        `split`, what `pixel_metrics` gives, and under `lpips`, `features` and `identity` what `lpips_distance`,
        `feature_distance` and `identity_kept` give, with `network` and `network_sha256`, or why they are skipped.
    """
    pair = (encoded.images, encoded.reconstructions)
    lpips, vgg, recogniser = networks.lpips, networks.vgg, networks.recogniser
    return {
        "split": "test",
        **pixel_metrics(*pair, encoded.place),
        "lpips": attempt(lambda: lpips_distance(lpips.get(), *pair, encoded.place) | lpips.about),
        "features": attempt(lambda: feature_distance(vgg.get(), *pair, encoded.place) | vgg.about),
        "identity": attempt(lambda: identity_kept(recogniser.get(), *pair) | recogniser.about),
    }


def _pairs(place: Placement, what: str, *sets: Images) -> Iterator[tuple[Tensor, ...]]:
    """Some of each set in turn, (B, 3, S, S) in [0, 1] on the device."""
    for some in batches(len(sets[0]), what):
        yield tuple(place.images(images[some]) for images in sets)


def pixel_metrics(originals: Images, reconstructions: Images, place: Placement) -> dict[str, Any]:
    """PSNR and SSIM on the scale [0, 1], each of one image, then averaged.

    SSIM is that of Wang et al. (2004): an 11x11 Gaussian window of sigma 1.5, over the colour channels alike.

    Returns:
        `images`; `psnr_db`, `MAX_PSNR` for images that are the same; `psnr_db_quantiles` (`p5`, `median`, `p95` over
        images); `ssim`.
    """
    from torchmetrics.functional import image  # noqa: PLC0415  (start-up: seconds)

    psnr, ssim = [], []
    for truth, ours in _pairs(place, "comparing pixels", originals, reconstructions):
        psnr.append(image.peak_signal_noise_ratio(ours, truth, data_range=1.0, reduction="none", dim=(1, 2, 3)))
        similar = image.structural_similarity_index_measure(ours, truth, data_range=1.0, reduction="none")
        assert isinstance(similar, torch.Tensor)  # a pair where more is asked for
        ssim.append(similar.reshape(-1))
    decibels = torch.cat(psnr).clamp(max=MAX_PSNR).cpu().numpy()
    quantiles = np.percentile(decibels, [5, 50, 95]).tolist()
    return {
        "images": len(originals),
        "psnr_db": float(decibels.mean()),
        "psnr_db_quantiles": dict(zip(("p5", "median", "p95"), quantiles, strict=True)),
        "ssim": float(torch.cat(ssim).mean()),
    }


@torch.no_grad()
def lpips_distance(network: nn.Module, originals: Images, reconstructions: Images, place: Placement) -> dict[str, Any]:
    """LPIPS (Zhang et al., arXiv 1801.03924); 0 for images that are the same.

    Returns:
        `lpips`, `images`, and `image_size` at which they were compared: smaller ones are enlarged first.
    """
    network = network.to(place.device)
    distances, side = [], max(LPIPS_SIDE, originals.shape[1])
    for pair in _pairs(place, "LPIPS", originals, reconstructions):
        truth, ours = (nn.functional.interpolate(images, size=side, mode="bilinear") for images in pair)
        distances.append(network(ours, truth, normalize=True).reshape(-1))
    mean = float(torch.cat(distances).mean())
    return {"lpips": mean, "images": len(originals), "image_size": side}


def identity_kept(network: Recogniser, originals: Images, reconstructions: Images) -> dict[str, Any]:
    """How much a face recognition network finds reconstructions to be the same persons.

    Returns:
        `similarity`: mean cosine similarity of an image and its reconstruction, of the first `IDENTITY_IMAGES`;
        `different_faces`: of an image and the next one, to compare with; `images`.
    """
    originals, reconstructions = originals[:IDENTITY_IMAGES], reconstructions[:IDENTITY_IMAGES]
    return {
        "similarity": float(similarity(network, originals, reconstructions).mean()),
        "different_faces": float(similarity(network, originals, np.roll(originals, 1, axis=0)).mean()),
        "images": len(originals),
    }


def feature_distance(
    features: Features, originals: Images, reconstructions: Images, place: Placement
) -> dict[str, Any]:
    """Mean squared distances of VGG19 activations: the paper's perceptual loss as a measure (section 3.2).

    Returns:
        `mse`, by tap, on the activations' own scale; `relative`, by tap: that over the mean square of the originals'
        activations, which another set of weights of another scale leaves alike; `images`, `arithmetic`.
    """
    errors, squares = (torch.zeros(len(features.taps), dtype=torch.float64) for _ in range(2))
    for truth, ours in _pairs(place, "VGG19 distances", originals, reconstructions):
        fraction = len(truth) / len(originals)
        pairs = list(zip(features.maps(truth), features.maps(ours), strict=True))
        errors += fraction * torch.tensor([float((a - b).square().mean()) for a, b in pairs])
        squares += fraction * torch.tensor([float(a.square().mean()) for a, _ in pairs])
    return {
        "mse": dict(zip(features.taps, errors.tolist(), strict=True)),
        "relative": dict(zip(features.taps, (errors / squares.clamp(min=1e-12)).tolist(), strict=True)),
        "images": len(originals),
        "arithmetic": str(place.dtype).removeprefix("torch."),
    }
