"""The curves of a run's training, from its log of metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation import charts
from trainer.evaluation.grids import Figure

FILE, TITLE = "training_curves.png", "Training"


def draw(log: Path, folder: Path) -> list[Figure]:
    """Draws the loss and the PSNR of validation by step, from a run's metrics.jsonl; nothing where it has neither."""
    records = _read(log)
    losses = _points(records, lambda record: record.get("loss", {}).get("total"))
    validation, psnr = (
        _points(records, lambda record, name=name: record.get(name)) for name in ("val_loss", "val_psnr")
    )
    if not len(losses) and not len(psnr):
        return []
    positive = bool((np.concatenate([losses, validation])[:, 1] > 0).all())
    with charts.canvas(folder / FILE, 10, 3.2, 1, 2) as (_, axes):
        left, right = axes[0]
        left.plot(*losses.T, color=charts.BLUE, lw=1.2, label="training")
        left.plot(
            *validation.T,
            "o-",
            color=charts.ORANGE,
            ms=3.5,
            label="validation, at mu, without the attribute term",
        )
        left.set(xlabel="step", ylabel="loss", yscale="log" if positive else "linear")
        left.set_title("Loss", loc="left")
        left.legend(frameon=False)
        right.plot(*psnr.T, "o-", color=charts.ORANGE, ms=3.5)
        right.set(xlabel="step", ylabel="PSNR of val images, dB")
        right.set_title("Reconstruction", loc="left")
    look_for = (
        "The loss should fall and the PSNR rise until both are flat: where they still move at the end, longer training "
        "helps; where validation turns back, it has been too long."
    )
    return [Figure(FILE, TITLE, look_for)]


def _read(log: Path) -> list[dict[str, Any]]:
    """The records of a log, up to a line that an interruption tore."""
    records: list[dict[str, Any]] = []
    try:
        for line in log.read_text().splitlines():
            records.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return records


def _points(records: Sequence[dict[str, Any]], value_of: Any) -> NDArray[np.float64]:
    """Steps and values of the records that have one, (R, 2)."""
    found = [(record["step"], value) for record in records if (value := value_of(record)) is not None]
    return np.array(found, np.float64).reshape(-1, 2)
