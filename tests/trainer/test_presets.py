"""Every preset trains from its first to its last step: its own schedule, over its own epochs, on a small set.

The seed's network is whole. The others have a quarter of their channels: what is shown is that their optimisers, rates
and weights get somewhere.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from narrow_vgg import narrow_vgg

from trainer import run_folder
from trainer.config import RANDOM
from trainer.data import FaceData, load_data
from trainer.presets import PRESETS
from trainer.training import train

LEFT = {"seed": 0.95, "paper-123": 0.85, "paper-345": 0.75, "plain": 0.65, "best": 0.35, "quickstart": 0.55}
"""Share of the first steps' reconstruction terms that may be left in the last ones."""


@pytest.fixture(scope="module")
def faces64(faces: Path) -> FaceData:
    """The faces at 64 pixels: three steps an epoch."""
    return load_data(faces, 64, 148)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns_from_first_to_last_step(
    preset: str, faces64: FaceData, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.monitoring.watchdog.MIN_STEPS", 15)
    config = PRESETS[preset]()
    model = config.model
    if preset != "seed":
        model = replace(model, channels=tuple(channels // 4 for channels in model.channels))
    weights = RANDOM if config.taps else None
    with narrow_vgg():
        train(replace(config, model=model, vgg_weights=weights, log_every=1, threads=1), faces64, tmp_path)
    records = [json.loads(line) for line in (tmp_path / run_folder.METRICS).read_text().splitlines()]
    numbers = [value for record in records for value in (record.get("loss") or record).values()]
    assert all(math.isfinite(value) for value in numbers)
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 3 * config.epochs

    def mean(part: list[dict[str, float]]) -> float:
        features = [sum(value for name, value in loss.items() if name.startswith("feature/")) for loss in part]
        pixels = [loss["pixel"] for loss in part]
        return config.pixel_weight * float(np.mean(pixels)) + config.feature_weight * float(np.mean(features))

    assert mean(losses[-3:]) < LEFT[preset] * mean(losses[:3])
    assert "the loss does not fall" not in caplog.text
