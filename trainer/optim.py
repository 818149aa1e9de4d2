"""Muon, and the learning rates over the steps of a run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

WARMUP_FRACTION = 0.1
"""Fraction of a one-cycle run over which the learning rate rises."""
MOMENTUM = 0.95
"""Decay of Muon's averaged gradient."""
_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that drives singular values from (0, 1] to about 1 in a few steps."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate of every step, as a factor of its peak.

    Ours rather than `torch.optim.lr_scheduler`: a pure function of the step has no state to save or to resume.
    """

    # step: times `gamma` after each epoch (seed); one-cycle: a linear rise, then half a cosine to 0.
    kind: Literal["constant", "step", "one-cycle"]
    gamma: float  # of the kind step
    steps_per_epoch: int
    num_steps: int  # of the run
    start: int = 0  # step at which the cycle of one-cycle begins; it ends with the run

    def factor(self, step: int) -> float:
        """Learning rate of a step, counted from 0, as a factor of its peak."""
        if self.kind == "step":
            return float(self.gamma ** (step // self.steps_per_epoch))
        if self.kind == "one-cycle":
            step, length = step - self.start, self.num_steps - self.start
            warm = max(1, round(WARMUP_FRACTION * length))
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, length - warm)))
        return 1.0


def orthogonalise(matrix: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """The semi-orthogonal matrix nearest to a matrix, roughly: singular vectors kept, singular values near 1.

    Three Newton-Schulz steps are enough to descend along, and bfloat16 will do. The result is float32.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    nearest: Tensor = x.T if tall else x
    return nearest.float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for weights that act as matrices (Jordan et al., 2024).

    A step along the nearest semi-orthogonal matrix moves every direction of a weight alike, the rare ones too. The
    momentum is Nesterov's; kernels are taken as (first dimension, everything else). Ours, as `torch.optim.Muon` takes
    matrices only, and most weights here are kernels of convolutions.

    Args:
        parameters: weights with at least two dimensions.
        lr: spectral norm of a step, roughly; the steps of a matrix with more rows than columns are longer.
        steps: Newton-Schulz iterations.
        dtype: of the Newton-Schulz arithmetic.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 0.02, steps: int = 3, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(parameters, {"lr": lr, "steps": steps})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient are left alone."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["average"] = torch.zeros_like(parameter)
                average = state["average"].lerp_(parameter.grad, 1 - MOMENTUM)
                # The order of the columns is as they lie in memory, channels last.
                kernels = parameter.grad.lerp(average, MOMENTUM).movedim(1, -1)
                matrix = kernels.flatten(1)
                update = orthogonalise(matrix, group["steps"], self._dtype).view_as(kernels).movedim(-1, 1)
                widening = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                parameter.add_(update, alpha=-group["lr"] * widening)
