import functools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache

from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.errors import ConfigError
from trainer.loss.perceptual import PerceptualLoss
from trainer.loss.vae_loss import VAELoss
from trainer.loss.vgg import load_backbone
from trainer.train_state import TrainState
from trainer.training import compile_run


@pytest.fixture
def perceptual(tmp_path: Path) -> PerceptualLoss:
    layers = torch.nn.Conv2d(3, 64, 3).state_dict()
    torch.save({f"features.0.{name}": tensor for name, tensor in layers.items()}, tmp_path / "vgg.pth")
    backbone = load_backbone(("relu1_1",), tmp_path / "vgg.pth", seed=0)
    return PerceptualLoss(backbone, torch.device("cpu"), torch.float32)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a C++ compiler, on which compiling would pay."""
    monkeypatch.setattr("trainer.hardware.compile.MIN_CPU_IMAGES", 1)
    torch.compiler.reset()
    with inductor.patch({"cpp.cxx": (None, "/nowhere/g++")}), fresh_cache():
        yield
    torch.compiler.reset()


def run_of(config: TrainConfig, data: FaceData, tmp_path: Path) -> TrainState:
    return TrainState(replace(config, taps=("relu1_1",), epochs=100), data, tmp_path)


def compiled_of(run: TrainState, perceptual: PerceptualLoss) -> bool:
    return compile_run(run, VAELoss(run.config, perceptual))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled is traced as a whole and run as traced: that takes a second, and code generation twenty."""
    compile_traced = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile_traced)
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("traced")
def test_a_compiled_vae_trains_as_the_eager_one(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    """Over the end of an epoch, whose last batch is smaller and not compiled for."""
    losses = []
    for compiled in (False, True):
        run = TrainState(replace(small, batch_size=48, lr=1e-4), data, tmp_path)
        if compiled:
            run.compile()
        loss = VAELoss(run.config, None)
        losses.append([run.train_step(loss, run.loader.batch(step)).named()["total"] for step in range(5)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.usefixtures("traced")
def test_compiled_terms_and_gradients_are_the_eager_ones(perceptual: PerceptualLoss) -> None:
    images, ours = torch.rand(7, 3, 32, 32), torch.rand(7, 3, 32, 32)
    expected = perceptual.terms_and_gradient(ours, images)
    perceptual.compile(4)  # the last chunk has three images, and stays eager
    found = perceptual.terms_and_gradient(ours, images)
    assert torch.allclose(found[0], expected[0], rtol=1e-5)
    assert (found[1] - expected[1]).norm() < 1e-5 * expected[1].norm()


def test_a_short_run_is_not_compiled(
    small: TrainConfig, data: FaceData, perceptual: PerceptualLoss, tmp_path: Path
) -> None:
    assert not compiled_of(run_of(small, data, tmp_path), perceptual)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_training_goes_on_and_says_so(
    small: TrainConfig, data: FaceData, perceptual: PerceptualLoss, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert not compiled_of(run_of(small, data, tmp_path), perceptual)
    assert "training without torch.compile, which does not work here" in caplog.text
    assert "/nowhere/g++" in caplog.text


@pytest.mark.usefixtures("no_compiler")
def test_asked_for_and_impossible_is_an_error(
    small: TrainConfig, data: FaceData, perceptual: PerceptualLoss, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--compile on: torch\.compile does not work here .*use --compile off"):
        compiled_of(run_of(replace(small, compile="on"), data, tmp_path), perceptual)


def test_off_is_off(small: TrainConfig, data: FaceData, perceptual: PerceptualLoss, tmp_path: Path) -> None:
    run = run_of(replace(small, compile="off", epochs=10**6), data, tmp_path)
    assert not compiled_of(run, perceptual)
