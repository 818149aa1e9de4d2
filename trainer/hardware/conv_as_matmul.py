"""Strided convolutions on small images as matrix products, for CPUs with bf16 units.

oneDNN's bf16 kernels work along the rows of an image, and the deepest layers have rows of two or four pixels, which
takes several times as long as the product. The arithmetic is the same; `use_matmul` can be left out.

Shapes: B batch, C channels, H, W the larger image, h, w the smaller one, k kernel side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 4
"""Largest side of the smaller image for which a product is the faster."""


class _Window(NamedTuple):
    """How the kernel moves over the larger image of H x W pixels."""

    kernel: int
    stride: int
    padding: int
    height: int
    width: int


_Mover = Callable[[Tensor, _Window], Tensor]


def _gather(image: Tensor, window: _Window) -> Tensor:
    """Patches under the kernel: (B, H, W, C) to (B, h, w, k, k, C)."""
    kernel, stride, padding, *_ = window
    padded = F.pad(image, (0, 0, padding, padding, padding, padding))
    patches = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)  # (B, h, w, C, k, k)
    return patches.permute(0, 1, 2, 4, 5, 3).contiguous()


def _scatter(patches: Tensor, window: _Window) -> Tensor:
    """The adjoint: adds patches (B, h, w, k, k, C) up where they lie in the image (B, H, W, C), in float32."""
    kernel, stride, padding, height, width = window
    batch, rows, columns, _, _, channels = patches.shape
    image = torch.zeros(batch, height + 2 * padding, width + 2 * padding, channels)
    for y in range(kernel):
        for x in range(kernel):
            image[:, y : y + stride * rows : stride, x : x + stride * columns : stride] += patches[:, :, :, y, x]
    return image[:, padding : padding + height, padding : padding + width].to(patches.dtype)


class _Move(torch.autograd.Function):
    """`_gather` or `_scatter`, each of which is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, window: _Window, move: _Mover, back: _Mover) -> Tensor:
        ctx.window, ctx.back = window, back
        return move(tensor, window)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradients[0], ctx.window), None, None, None


def _pays(module: nn.Module, side: int) -> bool:
    return module.training and side <= LARGEST and torch.is_autocast_enabled("cpu")


class MatmulConv2d(nn.Conv2d):
    """`nn.Conv2d` that trains as a matrix product where that pays."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', h, w)."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        if not _pays(self, input.shape[-1] // stride):
            return super().forward(input)
        window = _Window(kernel, stride, padding, *input.shape[2:])
        patches: Tensor = _Move.apply(input.permute(0, 2, 3, 1), window, _gather, _scatter)  # type: ignore[no-untyped-call]
        return F.linear(patches.flatten(3), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias).permute(0, 3, 1, 2)


class MatmulConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` that trains as a matrix product where that pays."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, h, w) to (B, C', H, W)."""
        kernel, stride, padding, extra = self.kernel_size[0], self.stride[0], int(self.padding[0]), self.output_padding
        if not _pays(self, input.shape[-1]):
            return super().forward(input, output_size)
        height, width = ((side - 1) * stride - 2 * padding + kernel + extra[0] for side in input.shape[2:])
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (k*k*C', C)
        patches = F.linear(input.permute(0, 2, 3, 1), weight)
        patches = patches.view(*patches.shape[:3], kernel, kernel, -1)
        window = _Window(kernel, stride, padding, height, width)
        image: Tensor = _Move.apply(patches, window, _scatter, _gather)  # type: ignore[no-untyped-call]
        return (image if self.bias is None else image + self.bias.to(image.dtype)).permute(0, 3, 1, 2)


def use_matmul(model: nn.Module) -> None:
    """Has the strided convolutions of a model train as matrix products where that pays; no weight changes."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride[0] > 1:
            module.__class__ = MatmulConv2d
        elif isinstance(module, nn.ConvTranspose2d) and module.stride[0] > 1:
            module.__class__ = MatmulConvTranspose2d
