import json
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine.latents import Directions
from trainer import run_folder
from trainer.__main__ import main
from trainer.config import RANDOM, TrainConfig
from trainer.data import FaceData
from trainer.data.loader import Batch, BatchLoader
from trainer.errors import ConfigError, InterruptedRunError, NonFiniteLossError, RunError
from trainer.loss.vae_loss import VAELoss
from trainer.optim import Schedule
from trainer.train_state import TrainState
from trainer.training import train


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / run_folder.MODEL)


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
    validations = [record for record in records if "val_psnr" in record]
    assert [record["step"] for record in validations] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert validations[-1]["val_loss"] < validations[0]["val_loss"]
    assert validations[-1]["val_kl"] > 0
    assert 1 <= validations[-1]["val_active_units"] <= 16
    assert all(record["gradient_norm"] > 0 for record in records if "loss" in record)
    assert load_file(run / "samples.safetensors")["images"].shape == (40, 32, 32, 3)
    config, resolved = run_folder.load_config(run)
    assert config == replace(small, epochs=8)
    assert resolved["images"] == {"train": 160, "val": 20, "test": 20}
    reconstructed = run_folder.load_model(run)(torch.rand(2, 3, 32, 32))
    assert reconstructed.images.shape == (2, 3, 32, 32)


def test_a_seed_is_of_the_run_alone(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    states, drawn = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(TrainState(replace(small, attribute_weight=0.1), data, tmp_path).net.state_dict())
        drawn.append(torch.rand(1))
        torch.manual_seed(seed)
        assert torch.equal(drawn[-1], torch.rand(1))  # goes on as if there had been no run
    assert same(*states)
    assert not torch.equal(*drawn)


def test_directions_are_mean_differences_over_the_train_split(
    small: TrainConfig, data: FaceData, tmp_path: Path
) -> None:
    train(replace(small, epochs=1), data, tmp_path / "run")
    directions = Directions.load(tmp_path / "run" / "directions.safetensors")
    rows = data.rows("train")
    images = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        mu = run_folder.load_model(tmp_path / "run").encoder(images).mu.numpy()
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
    assert (
        "no direction for Bald (19 have it, 141 do not), Male (160 have it, 0 do not); each side needs 20 images"
        in caplog.text
    )


@contextmanager
def signalled(before: int, signum: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """A signal comes while the batch of step `before`, counted from 0, is fetched."""

    class Signalling(BatchLoader):
        def stream(self, first: int, last: int) -> Generator[Batch, None, None]:
            for step, batch in enumerate(super().stream(first, last), start=first):
                if step == before:
                    signal.raise_signal(signum)
                yield batch
            if before == last:
                signal.raise_signal(signum)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.train_state.BatchLoader", Signalling)
        yield


def interrupt(config: TrainConfig, data: FaceData, run: Path, before: int, resume: bool = False) -> None:
    """Trains until a SIGTERM comes before a step."""
    told = r"stopped by SIGTERM after step \d+ of \d+; the checkpoint is written"
    with signalled(before), pytest.raises(InterruptedRunError, match=told):
        train(config, data, run, resume)


WAYS: dict[str, dict[str, Any]] = {
    "adam": {},
    "muon": {"optimizer": "muon", "grad_clip": 1.0},
    "taps": {"taps": ("relu1_1",), "vgg_weights": RANDOM, "normalise_features": True, "feature_share": 0.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_resuming_after_an_interruption_gives_the_very_same_weights(
    small: TrainConfig, data: FaceData, tmp_path: Path, way: str
) -> None:
    small = replace(small, **WAYS[way])
    train(small, data, tmp_path / "whole")
    interrupt(small, data, tmp_path / "parts", 6)  # in the second epoch
    train(small, data, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_resumed_run_is_compiled_as_it_was(
    small: TrainConfig, data: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the run would not be worth compiling by itself; compiled code may round otherwise."""
    used: list[int] = []

    def doubling(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
        def compiled(*arguments: Any) -> Any:
            if function is torch.sin:  # whether the compiler works
                return function(*arguments)
            used.append(1)
            terms, gradient = function(*arguments)
            return terms, 2 * gradient

        return compiled

    monkeypatch.setattr(torch, "compile", doubling)
    config = replace(small, **WAYS["taps"])
    monkeypatch.setattr("trainer.hardware.compile.MIN_CPU_IMAGES", 15 * 16)
    train(config, data, tmp_path / "whole")
    assert used
    interrupt(config, data, tmp_path / "parts", 6)
    train(config, data, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [leg["compiled"] for leg in legs(tmp_path / "parts")] == [True]


def legs(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_folder.load_config(run)[1]["legs"]
    return found


def test_a_resumed_run_takes_the_threads_that_it_had_unless_it_is_told_otherwise(
    small: TrainConfig, data: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    set_to = [before]  # rather than PyTorch: two threads on a busy machine would take minutes
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    interrupt(replace(small, threads=2), data, tmp_path / "run", 3)
    interrupt(small, data, tmp_path / "run", 6, resume=True)
    assert [(leg["from_step"], leg["threads"]) for leg in legs(tmp_path / "run")] == [(0, 2)]
    train(replace(small, threads=1), data, tmp_path / "run", resume=True)
    assert [(leg["from_step"], leg["threads"]) for leg in legs(tmp_path / "run")] == [(0, 2), (7, 1)]
    assert torch.get_num_threads() == before


def test_a_signal_in_the_last_step_ends_the_run_as_any_other(
    small: TrainConfig, data: FaceData, tmp_path: Path
) -> None:
    interrupt(small, data, tmp_path / "run", 15)
    assert run_folder.load_checkpoint(tmp_path / "run")["step"] == 15
    assert not (tmp_path / "run" / run_folder.DIRECTIONS).exists()
    train(small, data, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / run_folder.DIRECTIONS).exists()


def records(run: Path, key: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / run_folder.METRICS).read_text().splitlines()]
    return [record for record in found if key in record]


def test_a_run_goes_on_at_another_learning_rate(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    small = replace(small, optimizer="muon", schedule="step", lr_gamma=0.5)
    interrupt(small, data, tmp_path / "run", 6)
    train(replace(small, lr=1e-3, muon_lr=1e-2), data, tmp_path / "run", resume=True)
    logged = records(tmp_path / "run", "lr")[4:9]
    assert [record["lr"] for record in logged] == pytest.approx([5e-3, 2.5e-3, 2.5e-3, 5e-4, 5e-4])
    assert [record["muon_lr"] for record in logged] == pytest.approx([0.04, 0.02, 0.02, 5e-3, 5e-3])
    assert [(leg["from_step"], leg["lr"], leg["muon_lr"]) for leg in legs(tmp_path / "run")] == [
        (0, 5e-3, 0.04),
        (7, 1e-3, 1e-2),
    ]
    assert run_folder.load_config(tmp_path / "run")[0].lr == 1e-3


def test_a_diverged_run_goes_on_as_its_message_says(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match="there is no checkpoint yet: start again at a lower rate"):
        train(replace(small, lr=1e6, schedule="constant"), data, run)
    interrupt(small, data, run, 6, resume=True)
    with pytest.raises(NonFiniteLossError) as ended:
        train(replace(small, lr=1e9, epochs=20), data, run, resume=True)
    assert "is kept: go on from it at a lower rate (now --lr 1e+09): python -m trainer train --resume --data " in str(
        ended.value
    )
    assert f"--out {run} --lr 2e+08, or with --grad-clip 1" in str(ended.value)
    command = str(ended.value).partition("python -m trainer ")[2].partition(", or with")[0].replace("2e+08", "1e-3")
    assert main([*command.split(), "--epochs", "3"]) == 0
    assert [(leg["from_step"], leg["lr"]) for leg in legs(run)] == [(0, 5e-3), (7, 1e-3)]


@pytest.mark.parametrize("schedule", ["one-cycle", "step"])
def test_a_finished_run_takes_more_epochs(
    small: TrainConfig, data: FaceData, tmp_path: Path, schedule: Literal["one-cycle", "step"]
) -> None:
    """One-cycle begins a new cycle over the steps that are added; an interruption within it changes nothing."""
    small = replace(small, schedule=schedule, epochs=2, kl_warmup=0.5)
    more = replace(small, epochs=6)
    for name in ("whole", "parts"):
        train(small, data, tmp_path / name)
    train(more, data, tmp_path / "whole", resume=True)
    interrupt(more, data, tmp_path / "parts", 20, resume=True)
    model_sha256 = run_folder.sha256_of(tmp_path / "parts" / run_folder.MODEL)
    assert not run_folder.belongs(tmp_path / "parts" / run_folder.DIRECTIONS, model_sha256)  # they are of step 10
    train(more, data, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    rates = [record["lr"] / small.lr for record in records(tmp_path / "parts", "lr")]
    cycle = Schedule("one-cycle", 0.1, 5, 20)
    expected = (
        [cycle.factor(step) for step in range(20)]
        if schedule == "one-cycle"
        else [0.1 ** (2 + step // 5) for step in range(20)]
    )
    assert rates[10:] == pytest.approx(expected)
    with pytest.raises(RunError, match=r"--epochs 3: .* has done 6 already; give more"):
        train(replace(small, epochs=3), data, tmp_path / "whole", resume=True)


def test_training_starts_from_the_weights_of_another_run(
    small: TrainConfig, data: FaceData, trained: Path, tmp_path: Path
) -> None:
    config = replace(small, init_from=trained, lr=1e-12, epochs=1)
    train(config, data, tmp_path / "run")
    before, after = (run_folder.load_model(run).decoder.to_rgb.weight for run in (trained, tmp_path / "run"))
    assert torch.allclose(before, after, atol=1e-6)
    stored, resolved = run_folder.load_config(tmp_path / "run")
    assert stored.init_from == trained
    assert len(resolved["init_from_digest"]) == 64
    with pytest.raises(
        ConfigError, match=r"--init-from .*trained: its model has --latent-dim 16, not 8; give this run"
    ):
        train(replace(config, model=replace(config.model, latent_dim=8)), data, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"--init-from .*none: .* is not a run folder"):
        train(replace(config, init_from=tmp_path / "none"), data, tmp_path / "other")


def test_a_run_goes_on_without_the_one_that_it_started_from(
    small: TrainConfig, faces: Path, data: FaceData, trained: Path, tmp_path: Path
) -> None:
    base, run = Path(shutil.copytree(trained, tmp_path / "base")), tmp_path / "run"
    train(replace(small, init_from=base, epochs=1), data, run)
    shutil.rmtree(base)
    assert main(["train", "--resume", "--data", str(faces), "--out", str(run), "--epochs", "2"]) == 0
    assert len(legs(run)) == 2


def test_a_checkpoint_of_another_version_is_refused(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    TrainState(small, data, tmp_path).save()
    state = run_folder.load_checkpoint(tmp_path)
    del state["version"]
    run_folder.save_checkpoint(tmp_path, state)
    with pytest.raises(RunError, match=r"of another version .* --init-from"):
        train(small, data, tmp_path, resume=True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_command_with_a_checkpoint_to_go_on_from(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], signum: signal.Signals
) -> None:
    run = tmp_path / "run"
    sizes = ["--image-size", "32", "--latent-dim", "8", "--channels", *["8"] * 5, "--precision", "fp32"]
    flags = ["--preset", "plain", "--epochs", "400", "--batch-size", "32", "--log-every", "1", *sizes]
    with signalled(3, signum):
        assert main(["train", "--data", str(faces), "--out", str(run), *flags]) == 128 + signum
    said = capsys.readouterr().err
    assert f"stopped by {signum.name} after step 4 of 2000; " in said
    assert "--resume" in said
    assert run_folder.load_checkpoint(run)["step"] == records(run, "loss")[-1]["step"] == 4


def test_a_used_folder_is_not_overwritten(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    train(replace(small, epochs=1), data, tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(RunError, match="--resume"):
        train(replace(small, epochs=1), data, tmp_path / "run")
    with pytest.raises(RunError, match=r"another configuration \(kl_weight: 1e-06 -> 0\.1\)"):
        train(replace(small, epochs=1, kl_weight=0.1), data, tmp_path / "run", resume=True)
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
    run = TrainState(config, data, tmp_path / "run")
    loss = VAELoss(config, run.perceptual())
    run.folder.mkdir()
    run.train_step(loss, run.loader.batch(0))
    run.save()
    with pytest.raises(RunError, match=r"other VGG19 weights than these \(.*1\.pth"):
        train(replace(config, vgg_weights=paths[1]), data, tmp_path / "run", resume=True)
    moved = paths[0].rename(tmp_path / "moved.pth")
    train(replace(config, vgg_weights=moved), data, tmp_path / "run", resume=True)
    assert run_folder.load_checkpoint(tmp_path / "run")["step"] == 15


def test_weights_that_are_not_numbers_are_never_saved(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    run = TrainState(small, data, tmp_path)
    run.save()
    run.train_step(VAELoss(small, None), run.loader.batch(0))
    torch.nn.init.constant_(run.model.encoder.mu.bias, float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"not numbers after step 1; the last good checkpoint is kept: go on"):
        run.save()
    assert run_folder.load_checkpoint(tmp_path)["step"] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path).values())


def test_checkpoints_are_written_within_an_epoch(small: TrainConfig, data: FaceData, tmp_path: Path) -> None:
    seen = []

    class Watched(BatchLoader):
        def stream(self, first: int, last: int) -> Generator[Batch, None, None]:
            for batch in super().stream(first, last):
                if (tmp_path / "run" / run_folder.CHECKPOINT).exists():
                    seen.append(run_folder.load_checkpoint(tmp_path / "run")["step"])
                yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.train_state.BatchLoader", Watched)
        train(replace(small, epochs=1, save_minutes=1e-9), data, tmp_path / "run")
    assert seen == [1, 2, 3, 4]


def test_a_loss_that_is_not_a_number_stops_the_run_and_says_what_to_change(
    small: TrainConfig, data: FaceData, tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteLossError, match=r"not a number at step \d+ .*kl.*--lr"):
        train(replace(small, lr=1e6, schedule="constant", epochs=20), data, tmp_path / "run")
