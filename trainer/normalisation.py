"""Batch norm in training: over the images of all processes, as PyTorch's own `SyncBatchNorm` knows only GPUs.

Shapes: B images of this process (it may have none), C channels, H, W.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_DIMS = (0, 2, 3)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all processes' images together."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, H, W); with running statistics in evaluation mode, alone in this process."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        normalised: Tensor = output
        return normalised


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, in float32.

    The mean is summed up before the squared deviations from it, as a sum of squares less the squared mean would cancel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float()
        sums = torch.cat([wide.sum(_DIMS), wide.new_tensor([wide.numel() / wide.shape[1]])])
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        centred = wide - mean.view(1, -1, 1, 1)
        squares = centred.square().sum(_DIMS)
        dist.all_reduce(squares)
        variance = squares / count
        scale = torch.rsqrt(variance + eps)
        output = torch.addcmul(bias.view(1, -1, 1, 1), centred, (scale * weight).view(1, -1, 1, 1))
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        slope = slopes[0].float()
        normal = (x.float() - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        ours = torch.stack([slope.sum(_DIMS), (slope * normal).sum(_DIMS)])  # gradients of bias and weight
        sums = ours.clone()
        dist.all_reduce(sums)
        plain, along = (sums / count).view(2, 1, -1, 1, 1)
        gradient = (slope - plain - normal * along) * (scale * weight).view(1, -1, 1, 1)
        return gradient.to(x.dtype), ours[1], ours[0], None


def synchronise(model: nn.Module) -> None:
    """Has every batch norm of a model take its training statistics over all processes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm2d


def fix_idle_biases(model: nn.Module) -> None:
    """Leaves out of training the biases that a batch norm follows at once: it takes them away again.

    Their gradient is zero but for rounding, along which Adam would walk them; on a CPU it costs 15% of a step.
    """
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for layer, following in pairwise(module):
                if isinstance(following, nn.BatchNorm2d) and isinstance(layer.bias, nn.Parameter):
                    layer.bias.requires_grad_(False)
