"""VGG19's feature layers: loading them, and passing images forwards to the taps and gradients back to the pixels.

The weights are frozen and only the pixels need a gradient, so the passes are written out: activations are rectified in
place, differences become gradients in place, and nothing is cast to float32 and back, which on a CPU more than halves
the time that autograd takes. The arithmetic is the same.

VGG19 lives outside the VAE's module tree: never in its state_dict, never in `.train()`, never in the ONNX graphs.

Shapes: B batch, S image side, C, H, W of a layer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import RANDOM, VGG19_TAPS
from trainer.errors import ConfigError
from trainer.hardware.device import seeded
from trainer.loss import pretrained

IMAGENET_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
"""Of torchvision's VGG19_Weights.IMAGENET1K_V1, whose module takes seconds to import."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BLOCKS = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))  # convolutions of each, and their channels
_aten = torch.ops.aten

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Backbone:
    """VGG19's feature layers up to the deepest tap."""

    layers: nn.Sequential  # the modules, frozen, in evaluation mode; their input is RGB normalised as for ImageNet
    taps: dict[str, int]  # position of each tapped ReLU in `layers`, in order of depth, by name
    source: str  # where the weights came from, one sentence, for the run's config


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
    with seeded(seed):
        layers = nn.Sequential(*islice(_layers(), max(positions.values()) + 1))
    if weights == RANDOM:
        source = f"VGG19 with random weights (seed {seed})"
    elif weights is not None:
        _load(layers, pretrained.read(weights, "--vgg-weights"), str(weights))
        source = f"VGG19 weights from the file {weights.name}"
    else:
        _load(layers, _imagenet(pretrained.fetch), "torchvision's ImageNet weights")
        source = "VGG19 weights of torchvision, ImageNet (IMAGENET1K_V1)"
    return Backbone(layers.eval().requires_grad_(False), positions, source)


def check_weights(taps: tuple[str, ...], weights: Path | None) -> str:
    """Where `load_backbone` would take its weights from; downloads nothing, but may ask the network for a few seconds.

    Raises:
        ConfigError: as `load_backbone`.
    """
    if weights == RANDOM:
        return "random ones"
    if weights is not None:
        load_backbone(taps, weights, seed=0)
        return f"the file {weights}"
    _imagenet(pretrained.check)
    path = pretrained.cached(IMAGENET_URL)
    return "torchvision's ImageNet weights, " + (f"cached at {path}" if path.is_file() else "to be downloaded (548 MB)")


def _imagenet(find: Callable[[str], ResultT]) -> ResultT:
    """What `pretrained` finds of torchvision's weights; where they can't be had, says what else will do."""
    try:
        return find(IMAGENET_URL)
    except pretrained.UnavailableError as error:
        raise pretrained.UnavailableError(
            error.reason,
            f"the feature terms need VGG19's weights: {error.reason}; or give --vgg-weights FILE (torchvision's "
            "layout), or --vgg-weights random (random features work, but less well)",
        ) from error


def _layers() -> Iterator[nn.Module]:
    """VGG19's feature layers as torchvision numbers them, with random weights that keep the scale from one to the next.

    Each is made when it is asked for, so that deep layers cost no memory where shallow ones will do.
    """
    before = 3
    for convolutions, channels in _BLOCKS:
        for _ in range(convolutions):
            convolution = nn.utils.skip_init(nn.Conv2d, before, channels, 3, padding=1)  # type: ignore[no-untyped-call]
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)
            yield convolution
            yield nn.ReLU()
            before = channels
        yield nn.MaxPool2d(2)


def _position(tap: str) -> int:
    """Index of a ReLU in torchvision's `vgg19().features`: convolution and ReLU in turn, a pooling after each block."""
    block = int(tap[4])
    return 2 * VGG19_TAPS.index(tap) + 1 + (block - 1)


def _load(layers: nn.Sequential, state: dict[str, Any], origin: str) -> None:
    wanted = {name: state.get(f"features.{name}") for name in layers.state_dict()}
    missing = [f"features.{name}" for name, tensor in wanted.items() if tensor is None]
    if missing:
        raise ConfigError(
            f"--vgg-weights: {origin} lacks {missing[0]}; give VGG19's weights up to the deepest tap, or train with "
            "shallower --taps"
        )
    try:
        layers.load_state_dict(wanted)
    except RuntimeError as error:
        raise ConfigError(f"--vgg-weights: {origin} does not fit VGG19: {shorten(str(error), 200)}") from error


@dataclass(frozen=True)
class _Step:
    """What one layer did, as far as the backward pass needs it."""

    position: int
    layer: nn.Module
    before: Tensor
    after: Tensor
    indices: Tensor | None


class FeatureExtractor:
    """Frozen convolutions, ReLUs and poolings, some of whose outputs are tapped.

    Args:
        layers: the modules of VGG19's `features`, up to the deepest tap.
        taps: positions in `layers` whose outputs are looked at, in order of depth; the last layer is one.
        device: where to compute.
        dtype: arithmetic of the convolutions.
    """

    def __init__(self, layers: nn.Sequential, taps: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
        self._layers = layers.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._taps = taps
        self._dtype = dtype
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Activations at the taps, (B, C, H, W) each, of images (B, 3, S, S) in [0, 1]."""
        return [step.after for step in self._forward(images) if step.position in self._taps]

    @torch.no_grad()
    def compare(self, ours: Tensor, theirs: Tensor, weights: list[float]) -> tuple[Tensor, Tensor]:
        """Weighted mean squared distances of two batches (B, 3, S, S) float32 in [0, 1] at every tap, and the gradient.

        Returns:
            The terms w_l * MSE(phi_l(ours), phi_l(theirs)), (taps,) float32, and the gradient of their sum with regard
            to `ours`, float32.
        """
        targets = self.features(theirs)
        steps = list(self._forward(ours))
        tapped = [step.after for step in steps if step.position in self._taps]
        terms, gradients = [], []
        for target, activation, weight in zip(targets, tapped, weights, strict=True):
            difference = activation - target
            scale = weight / difference.numel()
            # Row by row, (B, H): one long sum in float32 would round off the fourth digit.
            rows = torch.linalg.vector_norm(difference, dim=(1, 3), dtype=torch.float32)
            terms.append(rows.square().sum() * scale)
            gradients.append(difference.mul_(2 * scale))
        return torch.stack(terms), self._backward(steps, gradients) / self._std

    def _forward(self, images: Tensor) -> Iterator[_Step]:
        activation = ((images - self._mean) / self._std).to(self._dtype, memory_format=torch.channels_last)
        for position, layer in enumerate(self._layers):
            before, indices = activation, None
            if isinstance(layer, nn.ReLU):
                activation = before.relu_()
            elif isinstance(layer, nn.MaxPool2d):
                activation, indices = F.max_pool2d(before, 2, return_indices=True)
            else:
                activation = layer(before)
            yield _Step(position, layer, before, activation, indices)

    def _backward(self, steps: list[_Step], gradients: list[Tensor]) -> Tensor:
        """The gradient at the first layer's input, float32, from one at every tap."""
        gradient = gradients[-1]
        shallower = dict(zip(self._taps[:-1], gradients[:-1], strict=True))
        for step in reversed(steps):
            if step.position in shallower:
                gradient = gradient + shallower[step.position]
            if isinstance(step.layer, nn.ReLU):
                gradient = _aten.threshold_backward(gradient, step.after, 0)
            elif isinstance(step.layer, nn.MaxPool2d):
                gradient = _aten.max_pool2d_with_indices_backward(
                    gradient, step.before, [2, 2], [2, 2], [0, 0], [1, 1], False, step.indices
                )
            else:
                assert isinstance(step.layer, nn.Conv2d)
                gradient = _aten.convolution_backward(
                    gradient, step.before, step.layer.weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                    [True, False, False],
                )[0]  # fmt: skip
        return gradient.float()
