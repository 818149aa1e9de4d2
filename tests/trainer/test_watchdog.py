import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.hardware.device import Placement
from trainer.loss.vae_loss import VAELoss
from trainer.model import VAE
from trainer.monitoring.validation import MAX_PSNR, validate
from trainer.monitoring.watchdog import Watchdog
from trainer.run_folder import METRICS
from trainer.training import train

FALLING = [{"pixel": 0.09 * 0.8**step, "kl": 300.0} for step in range(30)]
STUCK = [{"pixel": 0.09 - 0.00001 * step, "kl": 300.0} for step in range(30)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "trainer.monitoring.watchdog"]


def watch(config: TrainConfig, folder: Path, losses: list[dict[str, float]]) -> Watchdog:
    """After the first half was logged and read back, as by a run that is gone on with."""
    half = len(losses) // 2
    (folder / METRICS).write_text("".join(json.dumps({"step": 0, "loss": loss}) + "\n" for loss in losses[:half]))
    watch = Watchdog(config, folder / METRICS)
    for loss in losses[half:]:
        watch.losses(loss)
    return watch


@pytest.mark.parametrize(("kl", "active"), [(0.2, 16), (40.0, 1)])
def test_posterior_collapse_is_warned_of_once(
    small: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, kl: float, active: int
) -> None:
    each = watch(replace(small, kl_weight=0.7), tmp_path, FALLING)
    for step in (300, 400):
        each.validation(step, kl, active, warmed=True)
    (said,) = warnings(caplog)
    assert "posterior collapse at step 300: " in said
    assert f"{active} of 16 latents are active" in said
    assert "a lower --kl-weight (now 0.7)" in said


def test_a_loss_that_does_not_fall_is_warned_of_once(
    small: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    each = watch(small, tmp_path, STUCK)
    for step in (300, 400):
        each.validation(step, 40.0, 16, True)
    (said,) = warnings(caplog)
    assert "the loss does not fall: at step 300 its reconstruction terms are 0.08" in said
    assert "another --lr (now 0.005)" in said


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        (FALLING, (300, 40.0, 16, True)),
        (FALLING, (300, 1.5, 2, True)),
        (FALLING, (300, 0.2, 0, False)),  # the KL term's weight still rises
        (STUCK, (50, 0.2, 0, True)),  # too early to tell
    ],
)
def test_a_healthy_run_is_not_warned_of(
    small: TrainConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    losses: list[dict[str, float]],
    found: tuple[int, float, int, bool],
) -> None:
    watch(small, tmp_path, losses).validation(*found)
    assert not warnings(caplog)


def test_fine_tuning_begins_with_a_loss_that_has_fallen(
    small: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch(replace(small, init_from=tmp_path), tmp_path, STUCK).validation(300, 40.0, 16, True)
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"lr": 1e-9}, "the loss does not fall"), ({"lr": 2e-2, "kl_weight": 10.0}, "posterior collapse")],
)
def test_training_warns_by_itself(
    small: TrainConfig, data: FaceData, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.monitoring.watchdog.MIN_STEPS", 40)
        warned = []
        patch.setattr("trainer.monitoring.watchdog.logger.warning", lambda message, *_: warned.append(message))
        train(replace(small, epochs=14, schedule="constant", **changes), data, tmp_path / "run")
    assert said in " ".join(warned)


def test_one_validation_image_is_enough(small: TrainConfig, data: FaceData, recwarn: pytest.WarningsRecorder) -> None:
    found = validate(VAE(small.model), Placement.of("cpu", "fp32"), VAELoss(small, None), data.images[:1])
    assert found.active == 0
    assert not recwarn.list


def test_psnr_of_an_image_that_is_met_exactly_is_a_number(small: TrainConfig) -> None:
    vae = VAE(small.model)
    assert vae.decoder.to_rgb.bias is not None
    torch.nn.init.constant_(vae.decoder.to_rgb.bias, 100.0)  # white
    white = np.full((2, vae.config.image_size, vae.config.image_size, 3), 255, np.uint8)
    found = validate(vae, Placement.of("cpu", "fp32"), VAELoss(small, None), white)
    assert found.psnr == MAX_PSNR
