"""An exponential moving average of the weights: what a run saves, validates and computes directions with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from trainer.model import VAE


class WeightAverage:
    """Follows a model's weights and batch norm statistics, w' <- d w' + (1 - d) w, once a step.

    The decay d of step t, counted from 0, is min(decay, (1 + t) / (10 + t)), so that the first weights are soon
    forgotten. PyTorch's own `swa_utils.AveragedModel` would wait for the GPU in every step.

    Attributes:
        model: the averaged weights; in evaluation mode, without gradients.
    """

    def __init__(self, model: VAE, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: VAE, step: int) -> None:
        """Takes in the weights after step `step`, counted from 0."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs: list[tuple[Tensor, Tensor]] = list(zip(self.model.parameters(), model.parameters(), strict=True))
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            if current.is_floating_point():
                pairs.append((average, current))
            else:
                average.copy_(current)  # batch norm's count of batches
        averages, currents = map(list, zip(*pairs, strict=True))
        torch._foreach_lerp_(averages, currents, share)
