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
    """(x - mean) / sqrt(variance + eps) * weight + bias, in float32; one message forwards and one backwards.

    The processes exchange means and squared deviations from them: a sum of squares less the squared mean would cancel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float()
        pixels = wide.numel() // wide.shape[1]
        ours = wide.sum(_DIMS) / max(pixels, 1)
        deviations = (wide - ours.view(1, -1, 1, 1)).square().sum(_DIMS)
        message = torch.stack([ours.new_full(ours.shape, pixels), ours, deviations])
        messages = [torch.empty_like(message) for _ in range(dist.get_world_size())]
        dist.all_gather(messages, message)
        counts, means, squares = torch.stack(messages, 1)  # (processes, C) each
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        scale = torch.rsqrt(variance + eps)
        output = torch.addcmul(
            bias.view(1, -1, 1, 1), wide - mean.view(1, -1, 1, 1), (scale * weight).view(1, -1, 1, 1)
        )
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
