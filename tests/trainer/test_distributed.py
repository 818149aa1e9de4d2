"""Two real processes on the CPU, started by torchrun."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torchvision.models import vgg19

from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.dataset import FaceData
from trainer.loss import Loss
from trainer.normalisation import synchronise
from trainer.run import Run

SIZES = ["--image-size", "32", "--latent-dim", "16", "--channels", "16", "16", "32", "32"]
COMMON = ["--preset", "plain", "--precision", "fp32", "--device", "cpu", "--log-every", "1", *SIZES]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def command(processes: int, faces: Path, run: Path, *more: object) -> list[str]:
    launcher = TWO if processes == 2 else []
    arguments = ["-m", "trainer", "train", "--data", faces, "--out", run, *COMMON, *more]
    return [sys.executable, *launcher, *map(str, arguments)]


def recorded(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def alone(config: TrainConfig, data: FaceData, synchronised: bool) -> tuple[list[dict[str, float]], Run]:
    """The same training in this process: its losses, and its end."""
    run = Run(config, data, Path("nowhere"))
    if synchronised:
        synchronise(run.model)
    loss = Loss(config, run.perceptual())
    return [run.advance(loss, run.feed.batch(step)).named() for step in range(run.num_steps)], run


def apart(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """The largest relative difference of any term in any step."""
    assert len(ours) == len(theirs)
    return max(abs(a[name] - value) / value for a, b in zip(ours, theirs, strict=True) for name, value in b.items())


def test_two_processes_train_as_one_does(faces: Path, data: FaceData, tmp_path: Path) -> None:
    """With feature terms on a part of each batch, and an epoch's last batch of a single image.

    Adam makes steps of one length out of gradients of any size: rounding grows with its learning rate, and a wrong
    scale of the gradients would not show in the losses, so its averages of them are looked at as well. PyTorch's batch
    norm adds up long columns in float32, 3e-5 off; beside one process with the same batch norm, the match is closer.
    """
    torch.manual_seed(0)
    layers = vgg19(weights=None).features[:7].state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in layers.items()}, tmp_path / "vgg.pth")
    features = ["--taps", "relu1_1", "relu2_1", "--vgg-weights", tmp_path / "vgg.pth", "--normalise-features"]
    options = [*features, "--feature-share", "0.3", "--batch-size", "53", "--lr", "1e-4", "--schedule", "constant"]
    run = tmp_path / "run"
    done = subprocess.run(command(2, faces, run, *options, "--epochs", "3"), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    config, resolved = checkpoint.load_config(run)
    assert (resolved["processes"], config.batch_size, len(recorded(run))) == (2, 53, 12)
    assert apart(recorded(run), alone(config, data, synchronised=False)[0]) < 1e-4
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        losses, reference = alone(config, data, synchronised=True)
    finally:
        dist.destroy_process_group()
    assert apart(recorded(run), losses) < 1e-5
    state = checkpoint.load_checkpoint(run)
    for name, tensor in reference.learner.state_dict().items():
        difference = (tensor - state["learner"][name]).float().norm()
        assert difference <= 1e-3 * tensor.float().norm(), name
    for number, moments in reference.optimizers[0].state_dict()["state"].items():
        ours = state["optimizers"][0]["state"][number]["exp_avg"]
        print(number, ours.shape, ((ours - moments["exp_avg"]).norm() / moments["exp_avg"].norm()).item())
        assert (ours - moments["exp_avg"]).norm() < 1e-3 * moments["exp_avg"].norm()
    print(apart(recorded(run), losses), apart(recorded(run), alone(config, data, synchronised=False)[0]))
    assert 0


def test_sigterm_to_torchrun_leaves_a_checkpoint_that_one_process_goes_on_from(faces: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(2, faces, run, "--batch-size", "40", "--epochs", "400"), stderr=subprocess.PIPE, text=True
    )
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode != 0
    assert len(re.findall("error: stopped by SIGTERM after step", said)) == 1  # one process speaks
    step = checkpoint.load_checkpoint(run)["step"]
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == step
