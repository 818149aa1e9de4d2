"""The perceptual term: distances between VGG19 activations of two images (paper, section 3.2; seed).

VGG19 lives outside the VAE's module tree: never in its state_dict, never in `.train()`, never in the ONNX graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VGG19_Weights, vgg19

from trainer.config import RANDOM, VGG19_TAPS
from trainer.errors import ConfigError
from trainer.loss import pretrained
from trainer.loss.vgg import Trunk

IMAGENET_URL = VGG19_Weights.IMAGENET1K_V1.url
CHUNK_IMAGES = 16
"""Images that pass through VGG at once on a CPU: three maps gain 4% with 4, five maps lose 40%."""


@dataclass(frozen=True)
class Backbone:
    """VGG19's feature layers up to the deepest tap.

    Attributes:
        layers: the modules, frozen, in evaluation mode; their input is RGB normalised as for ImageNet.
        taps: position of each tapped ReLU in `layers`, in order of depth, by name.
        source: where the weights came from, one sentence, for the run's config.
    """

    layers: nn.Sequential
    taps: dict[str, int]
    source: str


def load_backbone(taps: tuple[str, ...], weights: Path | None, seed: int) -> Backbone:
    """Builds VGG19 up to the deepest tap.

    Args:
        taps: names such as "relu3_1".
        weights: a torchvision-layout state_dict, whose layers above the deepest tap may be absent; `RANDOM` for weights
            drawn from `seed`; None for torchvision's ImageNet weights, from the hub cache or a download.
        seed: of the random weights.

    Raises:
        ConfigError: the weights are missing, damaged or lack a layer that the taps need.
    """
    positions = {tap: _position(tap) for tap in sorted(taps, key=VGG19_TAPS.index)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta"):  # the classifier on top, half a gigabyte, is never made
            layers = vgg19(weights=None).features[: max(positions.values()) + 1]
        layers.to_empty(device="cpu")
        for module in layers:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # keeps the scale from layer to layer
                assert module.bias is not None  # VGG19 has them all
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.ReLU):
                module.inplace = False  # a tap must keep its value
    if weights == RANDOM:
        source = f"VGG19 with random weights (seed {seed})"
    elif weights is not None:
        _load(layers, pretrained.read(weights, "--vgg-weights"), str(weights))
        source = f"VGG19 weights from the file {weights.name}"
    else:
        try:
            state = pretrained.fetch(IMAGENET_URL)
        except pretrained.UnavailableError as error:
            raise _without_weights(error) from error
        _load(layers, state, "torchvision's ImageNet weights")
        source = "VGG19 weights of torchvision, ImageNet (IMAGENET1K_V1)"
    return Backbone(layers.eval().requires_grad_(False), positions, source)


def check_weights(taps: tuple[str, ...], weights: Path | None) -> str:
    """Where `load_backbone` would take its weights from; downloads nothing, but may ask the network for a few seconds.

    Raises:
        ConfigError: as `load_backbone`.
    """
    if weights is not None:
        load_backbone(taps, weights, seed=0)
        return "random ones" if weights == RANDOM else f"the file {weights}"
    try:
        pretrained.check(IMAGENET_URL)
    except pretrained.UnavailableError as error:
        raise _without_weights(error) from error
    path = pretrained.cached(IMAGENET_URL)
    return "torchvision's ImageNet weights, " + (f"cached at {path}" if path.is_file() else "to be downloaded (548 MB)")


def _without_weights(error: pretrained.UnavailableError) -> pretrained.UnavailableError:
    return pretrained.UnavailableError(
        error.reason,
        f"the feature terms need VGG19's weights: {error.reason}; or give --vgg-weights FILE (torchvision's layout), "
        "or --vgg-weights random (random features work, but less well)",
    )


def _position(tap: str) -> int:
    """Index of a ReLU in torchvision's `vgg19().features`: convolution and ReLU in turn, a pooling after each block."""
    block = int(tap[4])
    return 2 * VGG19_TAPS.index(tap) + 1 + (block - 1)


def _load(layers: nn.Sequential, state: dict[str, Any], origin: str) -> None:
    wanted = {name: state.get(f"features.{name}") for name in layers.state_dict()}
    missing = [f"features.{name}" for name, tensor in wanted.items() if tensor is None]
    if missing:
        raise ConfigError(f"--vgg-weights: {origin} lacks {missing[0]}, which the taps need; tap shallower layers")
    try:
        layers.load_state_dict(wanted)
    except RuntimeError as error:
        raise ConfigError(f"--vgg-weights: {origin} does not fit VGG19: {error}") from error


class PerceptualLoss:
    """Mean squared distance of VGG19 activations, one term a tap: MSE(phi_l(x), phi_l(y)) over batch, C, H and W.

    Not a module, on purpose. The features serve one gradient only, so it is computed along with the value, a few
    images at a time, and no graph is kept: memory does not grow with the batch.

    Scale: with `normalise`, each tap's activations are divided by their mean over calibration images, as Gatys et al.
    do, so that one set of loss weights fits any VGG19 weights (trained, activation-normalised or random).

    Attributes:
        backbone: the layers and where their weights came from.
        scales: what each tap's activations are multiplied by.
        chunk_images: images that pass through VGG at once.
    """

    def __init__(self, backbone: Backbone, device: torch.device, dtype: torch.dtype) -> None:
        self.backbone = backbone
        self.scales = dict.fromkeys(backbone.taps, 1.0)
        self.chunk_images = CHUNK_IMAGES if device.type == "cpu" else 1 << 30
        self._trunk = Trunk(backbone.layers, tuple(backbone.taps.values()), device, dtype)
        self._compiled: Callable[[Tensor, Tensor, list[float]], tuple[Tensor, Tensor]] | None = None

    def compile(self, images: int) -> None:
        """Has chunks as they occur in batches of `images` images run through torch.compile; others stay eager."""
        self.chunk_images = min(self.chunk_images, images)
        self._compiled = torch.compile(self._trunk.compare, dynamic=False)

    def normalise(self, images: Tensor) -> None:
        """Divides each tap's activations by their mean over `images` (N, 3, S, S) in [0, 1]."""
        means = torch.stack([feature.float().mean() for feature in self._trunk.features(images)])
        if not bool((means > 0).all()):
            raise ConfigError("VGG19 gives activations of zero on these images: the weights are broken")
        self.scales = {tap: 1.0 / float(mean) for tap, mean in zip(self.scales, means, strict=True)}

    def __call__(self, reconstructions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compares two batches.

        Args:
            reconstructions: (B, 3, S, S) float in [0, 1]; gradients flow to it.
            targets: (B, 3, S, S) float in [0, 1]; none flow to it.

        Returns:
            The sum of the terms, () float32, and the terms one by one, (taps,) float32 in order of depth and without
            gradients.
        """
        total, terms = _Distance.apply(reconstructions, targets, self)  # type: ignore[no-untyped-call]
        return total, terms

    def terms_and_gradient(self, reconstructions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The terms, (taps,) float32, and the gradient of their sum with regard to the reconstructions, float32."""
        terms, gradients = [], []
        weights = [scale**2 for scale in self.scales.values()]
        ours_by_chunk, theirs_by_chunk = (
            torch.split(images, self.chunk_images) for images in (reconstructions, targets)
        )
        for ours, theirs in zip(ours_by_chunk, theirs_by_chunk, strict=True):
            compiled = self._compiled if len(ours) == self.chunk_images else None
            part, gradient = (compiled or self._trunk.compare)(ours, theirs, weights)
            share = len(theirs) / len(targets)
            terms.append(part * share)
            gradients.append(gradient * share)
        return torch.stack(terms).sum(0), torch.cat(gradients)


class _Distance(torch.autograd.Function):
    """The sum of the terms, its gradient, and the terms."""

    @staticmethod
    def forward(ctx: Any, reconstructions: Tensor, targets: Tensor, loss: PerceptualLoss) -> tuple[Tensor, Tensor]:
        terms, gradient = loss.terms_and_gradient(reconstructions, targets)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None
