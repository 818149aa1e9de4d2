import json
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine.latents import Directions
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.dataset import FaceData
from trainer.errors import NonFiniteLossError, RunError
from trainer.feed import Batch, Feed
from trainer.loop import train
from trainer.loss import Loss
from trainer.run import Run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / checkpoint.MODEL)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_and_leaves_the_folder_of_the_design(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(replace(small, epochs=8), data, run)
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "model.safetensors", "checkpoint.pt", "directions.safetensors"} <= names
    assert {"metrics.jsonl", "samples.safetensors"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1]["pixel"] < 0.7 * losses[0]["pixel"]
    assert set(losses[0]) == {"total", "pixel", "kl"}
    assert [record["step"] for record in records if "val_psnr" in record] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert load_file(run / "samples.safetensors")["images"].shape == (40, 32, 32, 3)
    config, resolved = checkpoint.load_config(run)
    assert config == replace(small, epochs=8)
    assert resolved["images"] == {"train": 160, "val": 20, "test": 20}
    reconstructed = checkpoint.load_model(run)(torch.rand(2, 3, 32, 32))
    assert reconstructed.images.shape == (2, 3, 32, 32)


def test_directions_are_mean_differences_over_the_train_split(
    small: TrainConfig, data: FaceData, tmp_path: Path
) -> None:
    train(replace(small, epochs=1), data, tmp_path / "run")
    directions = Directions.load(tmp_path / "run" / "directions.safetensors")
    rows = data.rows("train")
    images = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        mu = checkpoint.load_model(tmp_path / "run").encoder(images).mu.numpy()
    has = data.index.labels[rows, data.index.attributes.index("Smiling")]
    expected = mu[has].mean(0) - mu[~has].mean(0)
    assert np.allclose(directions["Smiling"], expected, atol=1e-5)
    position = directions.names.index("Smiling")
    assert (directions.positives[position], directions.negatives[position]) == (has.sum(), (~has).sum())
    assert directions.split == "train"


def test_attributes_with_few_images_are_left_out_and_named(
    small: TrainConfig, data: FaceData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = data.index.labels.copy()
    rare, always = data.index.attributes.index("Bald"), data.index.attributes.index("Male")
    labels[:, rare], labels[:, always] = False, True
    labels[data.rows("train")[:19], rare] = True
    edited = replace(data, index=replace(data.index, labels=labels))
    train(replace(small, epochs=1), edited, tmp_path / "run")
    names = Directions.load(tmp_path / "run" / "directions.safetensors").names
    assert "Bald" not in names
    assert "Male" not in names
    assert "Smiling" in names
    assert "no direction for Bald: 19 images have it and 141 do not" in caplog.text


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_resuming_after_an_interruption_gives_the_very_same_weights(
    small: TrainConfig, data: FaceData, tmp_path: Path, optimizer: Literal["adam", "muon"]
) -> None:
    small = replace(small, optimizer=optimizer)
    train(small, data, tmp_path / "whole")
    run = Run(small, data, tmp_path / "parts")
    run.folder.mkdir()
    for _ in range(7):  # into the second epoch
        run.advance(Loss(small, None), run.feed.batch(run.step))
    run.save()
    checkpoint.save_config(run.folder, small, run.resolved(None))
    train(small, data, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def command(faces: Path, run: Path, *more: str) -> list[str]:
    sizes = ["--image-size", "32", "--latent-dim", "8", "--channels", *["8"] * 5, "--precision", "fp32"]
    plain = ["--preset", "plain", "--epochs", "400", "--batch-size", "32", "--log-every", "1", *sizes]
    return [sys.executable, "-m", "trainer", "train", "--data", str(faces), "--out", str(run), *plain, *more]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_command_with_a_checkpoint_to_go_on_from(
    faces: Path, data: FaceData, tmp_path: Path, signum: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command(faces, run), stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert f"stopped by {signum.name}" in said
    assert "--resume" in said
    state = checkpoint.load_checkpoint(run)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert state["step"] == max(steps) >= 1


def test_a_used_folder_is_not_overwritten(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    train(replace(small, epochs=1), data, tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(RunError, match="--resume"):
        train(replace(small, epochs=1), data, tmp_path / "run")
    with pytest.raises(RunError, match=r"another configuration \(lr: 0\.005 -> 0\.1\)"):
        train(replace(small, epochs=1, lr=0.1), data, tmp_path / "run", resume=True)
    with pytest.raises(RunError, match=r"another configuration \(latent_dim: 16 -> 8\)"):
        train(replace(small, epochs=1, model=replace(small.model, latent_dim=8)), data, tmp_path / "run", resume=True)
    with pytest.raises(RunError, match=r"not what .* was trained on"):
        train(replace(small, epochs=1), replace(data, fingerprint="other"), tmp_path / "run", resume=True)
    assert same(before, weights(tmp_path / "run"))


def test_what_changes_no_result_does_not_keep_a_run_from_going_on(
    small: TrainConfig, data: FaceData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(replace(small, epochs=1), data, tmp_path / "run")
    other = replace(small, epochs=1, preset="mine", device="cpu", compile="off", log_every=7, save_minutes=1.0)
    with caplog.at_level("INFO"):
        train(other, data, tmp_path / "run", resume=True)
    assert "is complete" in caplog.text


def test_other_vgg19_weights_are_noticed(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.pth")
        first = nn.Conv2d(3, 64, 3).state_dict()
        torch.save({f"features.0.{name}": tensor for name, tensor in first.items()}, paths[-1])
    config = replace(small, taps=("relu1_1",), vgg_weights=paths[0])
    run = Run(config, data, tmp_path / "run")
    loss = Loss(config, run.perceptual())
    run.folder.mkdir()
    run.advance(loss, run.feed.batch(0))
    run.save()
    with pytest.raises(RunError, match=r"other VGG19 weights than these \(.*1\.pth"):
        train(replace(config, vgg_weights=paths[1]), data, tmp_path / "run", resume=True)
    moved = paths[0].rename(tmp_path / "moved.pth")
    train(replace(config, vgg_weights=moved), data, tmp_path / "run", resume=True)
    assert checkpoint.load_checkpoint(tmp_path / "run")["step"] == 15


def test_weights_that_are_not_numbers_are_never_saved(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    run = Run(small, data, tmp_path)
    run.save()
    run.advance(Loss(small, None), run.feed.batch(0))
    torch.nn.init.constant_(run.model.encoder.mu.bias, float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"not numbers after step 1; lower --lr .* checkpoint is kept"):
        run.save()
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path).values())


def test_checkpoints_are_written_within_an_epoch(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    seen = []

    class Watched(Feed):
        def stream(self, first: int, last: int) -> Generator[Batch, None, None]:
            for batch in super().stream(first, last):
                if (tmp_path / "run" / checkpoint.CHECKPOINT).exists():
                    seen.append(checkpoint.load_checkpoint(tmp_path / "run")["step"])
                yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.run.Feed", Watched)
        train(replace(small, epochs=1, save_minutes=1e-9), data, tmp_path / "run")
    assert seen == [1, 2, 3, 4]


def test_a_loss_that_is_not_a_number_stops_the_run_and_says_what_to_change(
    small: TrainConfig, data: FaceData, tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteLossError, match=r"not a number at step \d+ .*kl.*--lr"):
        train(replace(small, lr=1e6, schedule="constant", epochs=20), data, tmp_path / "run")
