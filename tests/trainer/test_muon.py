from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainer.optim import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalising_keeps_singular_vectors_and_levels_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, values, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.3, 1, len(values))) @ v
    inside = u.T @ orthogonalise(matrix, steps=6, dtype=torch.float32) @ v.T
    assert ((inside.diagonal() > 0.5) & (inside.diagonal() < 1.5)).all()
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-3


def error_on_a_badly_scaled_problem(make: Callable[[nn.Parameter], torch.optim.Optimizer]) -> float:
    """Mean error of least squares whose columns weigh from 1 to 0.001, after 300 steps."""
    torch.manual_seed(0)
    target, scale = torch.randn(8, 8), torch.logspace(0, -3, 8)
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = make(weight)
    for _ in range(300):
        optimizer.zero_grad()
        loss = ((weight - target) * scale).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float((weight - target).detach().abs().mean())


def test_rare_directions_are_learnt_too() -> None:
    muon = error_on_a_badly_scaled_problem(lambda weight: Muon([weight], lr=0.02, steps=5))
    descent = error_on_a_badly_scaled_problem(lambda weight: torch.optim.SGD([weight], lr=0.05, momentum=0.9))
    assert muon < 0.7 * descent


def test_kernels_are_taken_as_matrices() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.zeros(4, 3, 3, 3))
    kernel.grad = torch.randn(4, 3, 3, 3)
    Muon([kernel], lr=1.0, steps=6).step()
    values = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert ((values > 0.5) & (values < 1.5)).all()
