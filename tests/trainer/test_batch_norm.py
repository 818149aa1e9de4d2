from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from trainer.config import TrainConfig
from trainer.hardware.distributed import Processes
from trainer.model import VAE, freeze_biases_before_batch_norm


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


def norms() -> tuple[nn.Sequential, nn.Sequential]:
    """A batch norm, and the same one synchronised."""
    plain, ours = (nn.Sequential(nn.BatchNorm2d(5)) for _ in range(2))
    for model in (plain, ours):
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.uniform_(parameter)
    Processes(0, 2).synchronise_batch_norm(ours)
    return plain, ours


@pytest.mark.usefixtures("alone")
def test_alone_it_is_batch_norm() -> None:
    plain, ours = norms()
    for _ in range(3):
        images = torch.randn(4, 5, 6, 7) * 3 + 100  # far from zero: a sum of squares would cancel
        gradient = torch.randn_like(images)
        outputs = []
        for model in (plain, ours):
            leaf = images.clone().requires_grad_()
            output = model(leaf)
            output.backward(gradient)
            assert leaf.grad is not None
            outputs.append((output, leaf.grad, model[0].weight.grad, model[0].bias.grad))
        for theirs, mine in zip(*outputs, strict=True):
            assert torch.allclose(theirs, mine, rtol=1e-4, atol=1e-4)
    assert plain.state_dict().keys() == ours.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, ours.state_dict()[name], rtol=1e-5), name


@pytest.mark.usefixtures("alone")
def test_bf16_stays_bf16() -> None:
    _, ours = norms()
    assert ours(torch.randn(4, 5, 6, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_in_evaluation_no_other_process_is_needed() -> None:
    plain, ours = norms()
    images = torch.randn(4, 5, 6, 7)
    assert torch.equal(plain.eval()(images), ours.eval()(images))


def test_only_biases_before_a_batch_norm_are_fixed(small: TrainConfig) -> None:
    model = VAE(small.model)
    freeze_biases_before_batch_norm(model)
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {f"{part}.blocks.{block}.0.bias" for part in ("encoder", "decoder") for block in range(5)}


def test_fixed_biases_had_no_gradient(small: TrainConfig) -> None:
    model, free = VAE(small.model), VAE(small.model)
    free.load_state_dict(model.state_dict())
    freeze_biases_before_batch_norm(model)
    images = torch.rand(4, 3, 32, 32)
    for each in (model, free):
        each(images, torch.zeros(4, 16)).images.square().mean().backward()
    for (name, ours), theirs in zip(model.named_parameters(), free.parameters(), strict=True):
        if ours.grad is None:
            assert theirs.grad is not None
            assert theirs.grad.abs().max() < 1e-6, name
        else:
            assert theirs.grad is not None
            assert torch.equal(ours.grad, theirs.grad), name
