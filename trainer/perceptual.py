"""The perceptual term: distances between VGG19 activations of two images (paper, section 3.2; seed).

VGG19 lives outside the VAE's module tree: never in its state_dict, never in `.train()`, never in the ONNX graphs.
"""

from __future__ import annotations

import logging
import math
import pickle
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG19_Weights, vgg19

from trainer.config import VGG19_TAPS
from trainer.errors import ConfigError

logger = logging.getLogger(__name__)

DOWNLOAD_PROBE_SECONDS = 5.0
CHUNK_IMAGES = 32
"""Images that pass through VGG at once on a CPU; larger chunks spend their time in page faults."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """VGG19's feature layers up to the deepest tap.

    Attributes:
        layers: the modules, frozen, in evaluation mode; their input is RGB normalised as for ImageNet.
        taps: position of each tapped ReLU in `layers`, in order of depth, by name.
        source: where the weights came from, one sentence, for the run's config.
        random: True when no trained weights could be had.
    """

    layers: nn.Sequential
    taps: dict[str, int]
    source: str
    random: bool


def load_backbone(taps: tuple[str, ...], weights: Path | None, seed: int) -> Backbone:
    """Builds VGG19 up to the deepest tap, with the best weights that can be had.

    In this order: the file `weights`; torchvision's ImageNet weights from the hub cache or a download; else, with a
    warning, weights drawn from `seed`.

    Args:
        taps: names such as "relu3_1".
        weights: a torchvision-layout state_dict; layers above the deepest tap may be absent.
        seed: of the random weights.

    Raises:
        ConfigError: `weights` is missing, unreadable or lacks a layer that the taps need.
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
    if weights is not None:
        _load(layers, _read(weights), str(weights))
        source, random = f"VGG19 weights from the file {weights.name}", False
    elif (downloaded := _imagenet_weights()) is not None:
        _load(layers, downloaded, "torchvision's ImageNet weights")
        source, random = "VGG19 weights of torchvision, ImageNet (IMAGENET1K_V1)", False
    else:
        source, random = (
            f"VGG19 with random weights (seed {seed}): no --vgg-weights file was given, the hub cache has none and "
            "they could not be downloaded; random features work, less well than trained ones",
            True,
        )
        logger.warning(source)
    return Backbone(layers.eval().requires_grad_(False), positions, source, random)


def _position(tap: str) -> int:
    """Index of a ReLU in torchvision's `vgg19().features`: convolution and ReLU in turn, a pooling after each block."""
    block = int(tap[4])
    return 2 * VGG19_TAPS.index(tap) + 1 + (block - 1)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"--vgg-weights {path}: no such file")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ConfigError(f"--vgg-weights {path}: not a file of PyTorch weights ({error})") from error
    if not isinstance(state, dict):
        raise ConfigError(f"--vgg-weights {path}: holds a {type(state).__name__}, not a state_dict")
    return state


def _load(layers: nn.Sequential, state: dict[str, Any], origin: str) -> None:
    wanted = {name: state.get(f"features.{name}") for name in layers.state_dict()}
    missing = [f"features.{name}" for name, tensor in wanted.items() if tensor is None]
    if missing:
        raise ConfigError(f"--vgg-weights: {origin} lacks {missing[0]}, which the taps need; tap shallower layers")
    try:
        layers.load_state_dict(wanted)
    except RuntimeError as error:
        raise ConfigError(f"--vgg-weights: {origin} does not fit VGG19: {error}") from error


def _imagenet_weights() -> dict[str, Any] | None:
    """Torchvision's weights, or None when they are neither cached nor within reach."""
    weights = VGG19_Weights.IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not cached.is_file() and not _within_reach(weights.url):
        return None
    try:
        state: dict[str, Any] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no space, a broken download or a torn cache file
        logger.warning("torchvision's VGG19 weights could not be loaded: %s", error)
        return None
    return state


def _within_reach(url: str) -> bool:
    """Whether the address answers in seconds; in a thread, as the look-up of a name has no time limit of its own."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=DOWNLOAD_PROBE_SECONDS):
                answered.set()
        except (urllib.error.URLError, OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_PROBE_SECONDS)
    return answered.is_set()


class PerceptualLoss:
    """Mean squared distance of VGG19 activations, one term a tap: MSE(phi_l(x), phi_l(y)) over batch, C, H and W.

    Not a module, on purpose. The features serve one gradient only, so it is computed along with the value, a few
    images at a time, and no graph is kept: memory does not grow with the batch.

    Scale: with `normalise`, each tap's activations are divided by their mean over calibration images, as Gatys et al.
    do, so that one set of loss weights fits any VGG19 weights (trained, activation-normalised or random).
    """

    def __init__(self, backbone: Backbone, device: torch.device, dtype: torch.dtype) -> None:
        self.backbone = backbone
        self.layers = backbone.layers.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype
        self.scales = dict.fromkeys(backbone.taps, 1.0)
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
        self.chunk_images = CHUNK_IMAGES if device.type == "cpu" else 1 << 30

    def normalise(self, images: Tensor) -> None:
        """Divides each tap's activations by their mean over `images` (N, 3, S, S) in [0, 1]."""
        with torch.no_grad():
            means = torch.stack([feature.float().mean() for feature in self._features(images)])
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

    def _features(self, images: Tensor) -> list[Tensor]:
        taps = set(self.backbone.taps.values())
        activation = ((images - self._mean) / self._std).to(self.dtype, memory_format=torch.channels_last)
        features = []
        for position, layer in enumerate(self.layers):
            activation = layer(activation)
            if position in taps:
                features.append(activation)
        return features

    def terms(self, reconstructions: Tensor, targets: Tensor) -> Tensor:
        """The terms of one chunk, as a plain differentiable expression."""
        with torch.no_grad():
            wanted = self._features(targets)
        return torch.stack(
            [
                F.mse_loss(ours.float(), theirs.float()) * scale**2
                for ours, theirs, scale in zip(
                    self._features(reconstructions), wanted, self.scales.values(), strict=True
                )
            ]
        )


class _Distance(torch.autograd.Function):
    """The sum of the terms, its gradient, and the terms, computed chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, reconstructions: Tensor, targets: Tensor, loss: PerceptualLoss) -> tuple[Tensor, Tensor]:
        count = math.ceil(len(targets) / loss.chunk_images)
        terms = torch.zeros(len(loss.scales), device=targets.device)
        gradients: list[Tensor] = []
        for ours, theirs in zip(reconstructions.chunk(count), targets.chunk(count), strict=True):
            share = len(theirs) / len(targets)
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                leaf = ours.detach().requires_grad_(ctx.needs_input_grad[0])
                part = loss.terms(leaf, theirs) * share
                if ctx.needs_input_grad[0]:
                    gradients += torch.autograd.grad(part.sum(), leaf)
            terms += part.detach()
        ctx.save_for_backward(*([torch.cat(gradients)] if gradients else []))
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None
