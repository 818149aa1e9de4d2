import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer.__main__ import main
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.presets import PRESETS


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "trainer", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_the_commands() -> None:
    said = run("--help").stdout
    for name in ("faces", "train", "evaluate"):
        assert name in said


def test_dry_run_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", "quickstart", "--data", "x", "--out", "y", "--lr", "0.5", "--dry-run"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["preset"] == "quickstart"
    assert values["lr"] == 0.5
    assert values["schedule"] == PRESETS["quickstart"]().schedule


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_json(preset: str) -> None:
    config = PRESETS[preset]()
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.preset == preset


def test_the_seed_preset_is_the_seed_document() -> None:
    config = PRESETS["seed"]()
    assert (config.batch_size, config.lr, config.schedule, config.lr_gamma) == (64, 0.05, "step", 0.1)
    assert (config.epochs, config.crop, config.flip, config.model.image_size) == (10, 148, True, 64)
    assert (config.model.latent_dim, config.model.channels) == (128, (32, 64, 128, 256, 512))
    assert config.taps == ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    assert (config.rec_weight, config.kl_weight, config.feature_weight) == (1, 1, 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "0"], "--epochs 0"),
        (["--image-size", "50"], "--image-size 50: must be a positive multiple of 32"),
        (["--channels", "1", "2"], "--channels (1, 2): must be five"),
        (["--taps", "relu9_9"], "unknown relu9_9; VGG19 has relu1_1"),
        (["--lr", "-1"], "--lr -1.0"),
        (["--preset", "none-such"], "--preset none-such: choose one of seed"),
        (["--device", "cuda"], "--device cuda: PyTorch sees no NVIDIA GPU"),
    ],
)
def test_bad_values_name_the_flag_and_the_mend(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["train", "--preset", "plain", "--data", str(faces), "--out", str(tmp_path / "r"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_bad_data_and_bad_runs_end_with_one_line(tmp_path: Path) -> None:
    for arguments in (
        ["train", "--data", str(tmp_path), "--out", str(tmp_path / "run")],
        ["evaluate", str(tmp_path), "--data", str(tmp_path)],
        ["faces", str(tmp_path / "f"), "--count", "3"],
        ["faces", str(Path(__file__).parent)],
    ):
        ended = run(*arguments)
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.startswith("error: ")
        assert len(ended.stderr.strip().splitlines()) == 1


def test_taps_and_weights_must_agree() -> None:
    with pytest.raises(ConfigError, match="--vgg-weights"):
        TrainConfig(taps=(), vgg_weights=Path("x.pth"))


def test_the_whole_trainer_from_the_command_line(faces: Path, tmp_path: Path) -> None:
    """Train, then evaluate: figures, and metrics that hold together."""
    out = tmp_path / "run"
    sizes = ["--image-size", "64", "--latent-dim", "16", "--channels", *["16"] * 5]
    trained = run("train", "--preset", "plain", "--data", str(faces), "--out", str(out), "--epochs", "2", *sizes)
    assert trained.returncode == 0, trained.stderr
    judged = run("evaluate", str(out), "--data", str(faces))
    assert judged.returncode == 0, judged.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["reconstruction"]["images"] == 20
    assert 5 < metrics["reconstruction"]["psnr_db"] < 40
    assert 0 < metrics["reconstruction"]["ssim"] < 1
    assert 0.5 < metrics["classifier"]["accuracy_mean"] <= 1
    edits = {(edit["attribute"], edit["strength"]) for edit in metrics["edits"]}
    assert edits == {(name, sign * 1.5) for name in ("Smiling", "Eyeglasses") for sign in (1, -1)}
    assert metrics["encoding"]["latent_dim"] == 16
    assert np.isfinite(metrics["encoding"]["kl_nats"])
    for name in ("reconstructions", "samples", "encoding_distribution"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
