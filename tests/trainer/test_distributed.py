"""Two real processes on the CPU: torchrun starts them, SIGTERM stops them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from servers import ROOT
from torch import nn

from trainer import run_folder
from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.errors import RunError
from trainer.hardware.distributed import Processes
from trainer.loss.vae_loss import VAELoss
from trainer.train_state import TrainState

SIZES = ["--image-size", "32", "--latent-dim", "16", "--channels", "16", "16", "32", "32"]
COMMON = ["--preset", "plain", "--precision", "fp32", "--device", "cpu", "--log-every", "1", *SIZES]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LEAVING = Path(__file__).with_name("leaving_processes.py")
MIN_STEPS = 10
"""Four steps an epoch, the last of them on a single image: so there are two of these."""


class Stopped(NamedTuple):
    folder: Path
    said: str
    returncode: int


@pytest.fixture(scope="module")
def stopped(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """A training of two processes, with feature terms on a part of each batch, that was sent SIGTERM."""
    folder = tmp_path_factory.mktemp("distributed")
    torch.manual_seed(0)
    layers = nn.ModuleDict({"0": nn.Conv2d(3, 64, 3), "2": nn.Conv2d(64, 64, 3), "5": nn.Conv2d(64, 128, 3)})
    torch.save({f"features.{name}": tensor for name, tensor in layers.state_dict().items()}, folder / "vgg.pth")
    features = ["--taps", "relu1_1", "relu2_1", "--vgg-weights", folder / "vgg.pth", "--normalise-features"]
    rates = ["--lr", "1e-4", "--schedule", "step", "--lr-gamma", "0.9"]  # which is warned of
    options = [*features, "--feature-share", "0.3", "--batch-size", "53", *rates]
    run, metrics = folder / "run", folder / "run" / run_folder.METRICS
    command = [*TORCHRUN, "-m", "trainer", "train", "--data", faces, "--out", run, *COMMON, *options, "--epochs", "100"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    while not metrics.exists() or f'"step": {MIN_STEPS}' not in metrics.read_text():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=250)
    return Stopped(run, said, process.returncode)


def recorded(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / run_folder.METRICS).read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def advance(run: TrainState, steps: int) -> list[dict[str, float]]:
    """The losses of the next steps, in this process alone."""
    loss = VAELoss(run.config, run.perceptual())
    return [run.train_step(loss, run.loader.batch(run.step)).named() for _ in range(steps)]


def apart(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """The largest relative difference of any term in any step."""
    return max(abs(a[name] - value) / value for a, b in zip(ours, theirs, strict=True) for name, value in b.items())


def config_of(run: Path) -> TrainConfig:
    return run_folder.load_config(run)[0]


def test_sigterm_leaves_a_checkpoint_and_one_process_speaks_for_both(stopped: Stopped) -> None:
    assert stopped.returncode != 0
    for sentence in ("WARNING: this run is short", "error: stopped by SIGTERM after step"):
        assert len(re.findall(sentence, stopped.said)) == 1
    assert run_folder.load_checkpoint(stopped.folder)["step"] == len(recorded(stopped.folder)) >= MIN_STEPS
    assert run_folder.load_config(stopped.folder)[1]["legs"][0]["processes"] == 2


def test_the_losses_are_those_of_one_process(stopped: Stopped, data: FaceData) -> None:
    """But for rounding: PyTorch's own batch norm sums long columns up in float32, which is some 3e-5 off."""
    losses = recorded(stopped.folder)
    assert apart(losses, advance(TrainState(config_of(stopped.folder), data, stopped.folder), len(losses))) < 1e-3


def test_beside_one_process_with_an_exact_batch_norm_all_is_the_same(stopped: Stopped, data: FaceData) -> None:
    """Losses, weights, and Adam's averaged gradients: their scale would not show in the losses."""
    losses, state = recorded(stopped.folder), run_folder.load_checkpoint(stopped.folder)
    run = TrainState(config_of(stopped.folder), data, stopped.folder)
    Processes(0, 2).synchronise_batch_norm(run.model)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        ours = advance(run, len(losses))
        # Each step multiplies what rounding left, and how many there are depends on when the signal came.
        assert apart(losses[:5], ours[:5]) < 1e-5
        assert apart(losses, ours) < 1e-4
    finally:
        dist.destroy_process_group()
    for name, tensor in run.net.state_dict().items():
        assert (tensor - state["net"][name]).float().norm() <= 1e-2 * tensor.float().norm(), name
    for number, values in run.optimizers[0].state_dict()["state"].items():
        ours = state["optimizers"][0]["state"][number]["exp_avg"]
        assert (ours - values["exp_avg"]).norm() < 2e-2 * values["exp_avg"].norm()


def test_one_process_goes_on_where_two_have_stopped(stopped: Stopped, data: FaceData) -> None:
    losses = recorded(stopped.folder)
    run, whole = (TrainState(config_of(stopped.folder), data, stopped.folder) for _ in range(2))
    run.restore()
    assert run.step == len(losses)
    expected = advance(whole, run.step + 2)[-2:]
    assert apart(advance(run, 2), expected) < 1e-3


@pytest.mark.parametrize(("error", "code"), [(MemoryError(), 1), (RunError("full"), 2), (KeyboardInterrupt(), 1)])
def test_whatever_ends_the_main_process_is_told_to_the_others(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda outcome, device: told.extend(outcome))

    def work() -> None:
        raise error

    with pytest.raises(type(error)):
        Processes(0, 2).on_main(work)
    assert told == [None, code]


def test_processes_leave_each_other_however_late_their_threads_are() -> None:
    command = [*TORCHRUN, str(LEAVING), "10"]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=280)
