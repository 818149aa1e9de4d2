"""Exact rewrites: modules that compute the same function with fewer operations."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def fold_batch_norm(module: AnyModule) -> AnyModule:
    """A copy with every batch norm folded into the convolution or transposed one just before it; equal up to rounding.

    The module is any tree in evaluation mode, float32.
    """
    module = copy.deepcopy(module)
    for block in [part for part in module.modules() if isinstance(part, nn.Sequential)]:
        for index in range(len(block) - 1, 0, -1):
            before, norm = block[index - 1], block[index]
            if isinstance(norm, nn.BatchNorm2d) and isinstance(before, nn.Conv2d | nn.ConvTranspose2d):
                # In float64, so that the folded weights are those of the exact product, rounded once.
                transposed = isinstance(before, nn.ConvTranspose2d)
                block[index - 1] = fuse_conv_bn_eval(before.double(), norm.double(), transposed).float()
                del block[index]
    return module


def merge_affine(function: nn.Module, inputs: int) -> nn.Linear:
    """Layers without an activation between them, as the one matrix that they are.

    The function is an affine map of (N, inputs) to (N, ...), in evaluation mode; it is left as it is.

    Returns:
        The same map to (N, M), its results flattened; computed in float64 and rounded once.
    """
    exact = copy.deepcopy(function).double()
    with torch.no_grad():
        origin: Tensor = exact(torch.zeros(1, inputs, dtype=torch.float64))
        columns: Tensor = exact(torch.eye(inputs, dtype=torch.float64)) - origin
    layer = nn.Linear(inputs, origin.numel())
    layer.weight = nn.Parameter(columns.flatten(1).T.float().contiguous())
    layer.bias = nn.Parameter(origin.flatten().float())
    return layer


class ProductConvolution(nn.Module):
    """A convolution of a small image, (N, I, h, h) to (N, O, h', h'), as one matrix product per position.

    Runtimes parallelise a convolution along a row, and at its deepest the encoder's rows have two positions.

    Args:
        layer: The convolution, of one group, with zero padding; left as it is.
        side: Side h of the images.
    """

    indices: Tensor

    def __init__(self, layer: nn.Conv2d, side: int) -> None:
        super().__init__()
        # Where each position of each window lies in the flattened image; h * h is a position that holds zeros.
        grid = torch.arange(1.0, side * side + 1).view(1, 1, side, side)
        windows = nn.functional.unfold(grid, layer.kernel_size, 1, layer.padding, layer.stride)  # type: ignore[arg-type]
        self.register_buffer("indices", (windows[0].T.flatten().long() - 1) % (side * side + 1))
        self.side = (side + 2 * int(layer.padding[0]) - layer.kernel_size[0]) // layer.stride[0] + 1
        out_channels, in_channels = layer.weight.shape[:2]
        self.flat = in_channels, side * side
        taps = layer.kernel_size[0] * layer.kernel_size[1]
        self.product = nn.Linear(taps * in_channels, out_channels)
        weight = layer.weight.detach().permute(0, 2, 3, 1).flatten(1)
        self.product.weight = nn.Parameter(weight.contiguous())
        bias = torch.zeros(out_channels) if layer.bias is None else layer.bias.detach().clone()
        self.product.bias = nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        """Convolves (N, I, h, h); the result is (N, h' * h', O), to be read by `by_position` layers."""
        flat = images.reshape(-1, *self.flat)  # (N, I, h*h)
        pixels = nn.functional.pad(flat.permute(0, 2, 1), (0, 0, 0, 1))  # (N, h*h + 1, I)
        windows = pixels[:, self.indices].reshape(-1, self.side**2, self.product.in_features)
        products: Tensor = self.product(windows)
        return products


def by_position(layer: nn.Linear, channels: int) -> nn.Linear:
    """A linear layer that reads flattened (O, P) features, of O channels, as one that reads the same as (P, O)."""
    turned = copy.deepcopy(layer)
    weight = layer.weight.detach().reshape(layer.out_features, channels, -1).transpose(1, 2).flatten(1)
    turned.weight = nn.Parameter(weight.contiguous())
    return turned
