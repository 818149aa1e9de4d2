"""Muon: momentum whose update is orthogonalised, for weights that act as matrices (Jordan et al., 2024).

Ours, as `torch.optim.Muon` takes matrices only, and most weights here are kernels of convolutions.

A step along the nearest semi-orthogonal matrix moves every direction of a weight alike, the rare ones too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that drives singular values from (0, 1] to about 1 in a few steps."""


def orthogonalise(matrix: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """The semi-orthogonal matrix nearest to a matrix, roughly: singular vectors kept, singular values near 1.

    Args:
        matrix: (rows, columns) float.
        steps: Newton-Schulz iterations; three are enough to descend along.
        dtype: of the arithmetic; bfloat16 will do.

    Returns:
        (rows, columns) float32.
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


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a weight has at least two dimensions: linear and convolution kernels, but no biases and norms."""
    return parameter.ndim >= 2


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; kernels are taken as (first dimension, everything else).

    Args:
        parameters: weights with at least two dimensions.
        lr: spectral norm of a step, roughly; the steps of a matrix with more rows than columns are longer.
        momentum: decay of the averaged gradient.
        steps: Newton-Schulz iterations.
        dtype: of the Newton-Schulz arithmetic.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        steps: int = 3,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "steps": steps})
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
                average = state["average"].lerp_(parameter.grad, 1 - group["momentum"])
                # The order of the columns is as they lie in memory, channels last.
                kernels = parameter.grad.lerp(average, group["momentum"]).movedim(1, -1)
                matrix = kernels.flatten(1)
                update = orthogonalise(matrix, group["steps"], self._dtype).view_as(kernels).movedim(-1, 1)
                widening = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                parameter.add_(update, alpha=-group["lr"] * widening)
