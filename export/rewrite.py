"""Exact rewrites: modules that compute the same function with fewer operations."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Convolution = nn.Conv2d | nn.ConvTranspose2d
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def fold_batch_norm(module: AnyModule) -> AnyModule:
    """Folds every batch norm into the convolution or transposed convolution just before it.

    In evaluation mode a batch norm is y = scale * x + shift per channel, scale = gamma / sqrt(var + eps) and
    shift = beta - scale * mean; both go into the convolution's weights and bias. Equal up to rounding.

    Args:
        module: Any tree of modules, in evaluation mode; left as it is.

    Returns:
        A copy in which no batch norm is left.

    Raises:
        ValueError: a batch norm does not follow a convolution with one group, or is in training mode.
    """
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        if isinstance(parent, nn.Sequential):
            _fold_inside(parent)
    for name, child in module.named_modules():
        if isinstance(child, nn.BatchNorm2d):
            raise ValueError(f"the batch norm {name!r} does not follow a convolution in an nn.Sequential")
    return module


def _fold_inside(block: nn.Sequential) -> None:
    for index in range(len(block) - 1, 0, -1):
        before, norm = block[index - 1], block[index]
        if isinstance(norm, nn.BatchNorm2d) and isinstance(before, nn.Conv2d | nn.ConvTranspose2d):
            _fold(before, norm)
            del block[index]


def _fold(conv: Convolution, norm: nn.BatchNorm2d) -> None:
    if norm.training or norm.running_mean is None or norm.running_var is None:
        raise ValueError("batch norm can only be folded in evaluation mode, with running statistics")
    if conv.groups != 1:
        raise ValueError(f"batch norm can only be folded into a convolution of one group, not {conv.groups}")
    # In float64, so that the folded weights are those of the exact product, rounded once.
    scale = _double(norm.weight, 1.0, norm) / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = _double(norm.bias, 0.0, norm) - scale * norm.running_mean.double()
    out_axis = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
    per_output = [1, 1, 1, 1]
    per_output[out_axis] = -1
    bias = _double(conv.bias, 0.0, norm)
    conv.weight = nn.Parameter((conv.weight.double() * scale.view(per_output)).to(conv.weight.dtype))
    conv.bias = nn.Parameter((bias * scale + shift).to(conv.weight.dtype))


def _double(values: Tensor | None, default: float, norm: nn.BatchNorm2d) -> Tensor:
    if values is None:
        return torch.full((norm.num_features,), default, dtype=torch.float64)
    return values.detach().double()
