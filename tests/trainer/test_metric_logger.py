import json
import logging
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.monitoring.metric_logger import MetricLogger
from trainer.monitoring.validation import Validation
from trainer.run_folder import METRICS

RATES = {"lr": 0.1, "gradient_norm": 2.0}
LOSSES = {"total": 1.0, "pixel": 0.5, "kl": 20.0}


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / METRICS).read_text().splitlines()]


def test_steps_that_are_done_again_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    with MetricLogger(tmp_path, step=0, num_steps=10, batch_size=4) as first:
        for step in (2, 4, 6):
            first.losses(step, step / 5, RATES, LOSSES)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 3, "loss": {"total": 1.0}')  # a kill may fall anywhere, on an inner brace too
    with MetricLogger(tmp_path, step=4, num_steps=10, batch_size=4) as second:
        assert steps(tmp_path) == [2, 4]
        second.losses(6, 1.2, RATES, LOSSES)
    assert steps(tmp_path) == [2, 4, 6]


def test_tensorboard_has_the_curves_and_the_pictures(tmp_path: Path) -> None:
    with MetricLogger(tmp_path, step=0, num_steps=10, batch_size=4) as each:
        each.losses(2, 0.4, RATES, LOSSES)
        each.validation(5, "1/2", Validation(20.0, 0.5, 30.0, 7, np.zeros((8, 8, 3), np.uint8)))
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    losses, rates = {"loss/total", "loss/pixel", "loss/kl"}, {"lr", "gradient_norm"}
    assert set(tags["scalars"]) == losses | rates | {"val_psnr", "val_loss", "val_kl", "val_active_units"}
    assert tags["images"] == ["reconstructions"]
    assert [scalar.step for scalar in events.Scalars("loss/kl")] == [2]


def test_without_a_terminal_a_line_now_and_then_says_how_long_it_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("trainer.monitoring.metric_logger.time.monotonic", lambda: now)
    with caplog.at_level(logging.INFO), MetricLogger(tmp_path, step=100, num_steps=1100, batch_size=64) as each:
        for step in range(101, 1101):
            now += 0.5
            each.advance(step)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "step 161 of 1100, 128 images/s, 07:49 left"
    assert 10 <= len(said) <= 17
