"""Learning rates over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

WARMUP_FRACTION = 0.1
"""Fraction of a one-cycle run over which the learning rate rises."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate of every step, as a factor of its peak.

    Ours rather than `torch.optim.lr_scheduler`: a pure function of the step has no state to save or to resume.

    Attributes:
        kind: constant; step: times `gamma` after each epoch (seed); one-cycle: a linear rise, then half a cosine to 0.
        gamma: of the kind step.
        steps_per_epoch: steps of an epoch.
        num_steps: steps of the run.
        start: step at which the cycle of one-cycle begins; it ends with the run.
    """

    kind: Literal["constant", "step", "one-cycle"]
    gamma: float
    steps_per_epoch: int
    num_steps: int
    start: int = 0

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
