"""The model card: README.md of a run folder, with Hugging Face's YAML head, so that it can be pushed as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer import run_folder
from trainer.artifacts.directions import load_directions
from trainer.run_folder import CARD, DIRECTIONS, EVALUATION

MARKER = "<!-- Written by the trainer, and renewed by it; delete this line to keep a text of your own. -->"

FIGURES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "psnr": ("PSNR of reconstructions, dB", ("reconstruction", "psnr_db"), 2),
    "ssim": ("SSIM of reconstructions", ("reconstruction", "ssim"), 3),
    "lpips": ("LPIPS of reconstructions", ("reconstruction", "lpips", "lpips"), 3),
    "fid": ("FID of samples", ("generation", "fid", "distance", "fitted"), 1),
    "accuracy": ("Attributes read off the latents, mean accuracy", ("attribute_prediction", "accuracy_mean"), 4),
}
"""Figures of metrics.json that the card shows: by Hugging Face's name of the metric, ours, the place and the digits."""


def write_card(run: Path) -> None:
    """Writes README.md into a run folder: preset, data set, attributes, how to load it, and figures if there are some.

    A README.md without `MARKER` is somebody's own text and stays.

    Raises:
        RunError: the run cannot be read, or the card not be written.
    """
    path = run / CARD
    if path.exists() and MARKER not in path.read_text(encoding="utf-8", errors="replace"):
        return
    config, resolved = run_folder.load_config(run)
    directions = load_directions(run / DIRECTIONS)[0] if (run / DIRECTIONS).exists() else []
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = environment.get_template("model_card.md.jinja").render(
        marker=MARKER,
        name=run.resolve().name,
        preset=config.preset,
        size=config.model.image_size,
        latent_dim=config.model.latent_dim,
        data=Path(resolved.get("data", "unknown data")).name,  # not where it lies: a card travels
        images=f"{resolved.get('images', {}).get('train', 0):,}",
        attributes=[direction.name for direction in directions],
        results=_results(run / EVALUATION),
    )
    run_folder.write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _results(path: Path) -> list[dict[str, Any]]:
    """The figures that were measured, of a metrics.json that may be missing."""
    try:
        metrics = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    found = []
    for kind, (name, keys, digits) in FIGURES.items():
        value: Any = metrics
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            found.append({"type": kind, "name": name, "value": round(value, digits)})
    return found
