"""The model card: README.md of a run folder, with Hugging Face's YAML head, so that it can be pushed as it is."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer import run_folder
from trainer.artifacts.directions import load_directions
from trainer.run_folder import CARD, DIRECTIONS, EVALUATION, MODEL, sha256_of

MARKER = "<!-- Written by the trainer, and renewed by it; delete this line to keep a text of your own. -->"

FIGURES = {
    "psnr": ("PSNR of reconstructions, dB", "reconstruction.psnr_db", 2),
    "ssim": ("SSIM of reconstructions", "reconstruction.ssim", 3),
    "lpips": ("LPIPS of reconstructions", "reconstruction.lpips.lpips", 3),
    "fid": ("FID of samples", "generation.fid.distance.mixture", 1),
    "frechet_vgg19": ("Fréchet distance of samples on VGG19", "generation.frechet_vgg19.distance.mixture", 1),
    "accuracy": ("Attributes read off the latents, mean accuracy", "attribute_prediction.accuracy_mean", 4),
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
    directions, _ = load_directions(run / DIRECTIONS)
    measured = Measured.of(run)
    text = Card(
        name=run.resolve().name,
        preset=config.preset,
        size=config.model.image_size,
        latent_dim=config.model.latent_dim,
        data=data_name(resolved),
        images=f"{resolved.get('images', {}).get('train', 0):,}",
        attributes=tuple(direction.name for direction in directions),
        results=measured.results,
        measured_on=measured.data,
        marker=MARKER,
    ).text()
    run_folder.write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says."""

    name: str  # of the model
    preset: str  # that it was trained with
    size: int  # side of its images, pixels
    latent_dim: int  # of its latents
    data: str  # name of the data set; empty where it isn't known
    images: str  # how many it was trained on
    attributes: tuple[str, ...]  # that can be edited
    results: list[dict[str, Any]]  # figures, as of `Measured`
    measured_on: str = ""  # name of the data set that they are of; empty where it isn't known
    weights: bool = True  # whether the trainer's weights lie beside the card
    onnx: bool = False  # whether ONNX graphs do, in `onnx/`
    parity: str = ""  # how well these agree with PyTorch; empty where it isn't known
    license: str = ""  # Hugging Face's name of the weights' license; empty where it is still to be chosen
    marker: str = ""  # a comment above the text

    def text(self) -> str:
        """The text of README.md."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
        )
        return environment.get_template("model_card.md.jinja").render(asdict(self))


def data_name(resolved: dict[str, Any]) -> str:
    """Name of a run's data set, not where it lies: a card travels."""
    return Path(resolved.get("data", "unknown data")).name


@dataclass(frozen=True)
class Measured:
    """What was measured of a run's present weights."""

    data: str  # name of the data set; empty where it isn't known
    results: list[dict[str, Any]]  # the figures, by `type`, `name` and `value`; none if there are none

    @classmethod
    def of(cls, run: Path) -> "Measured":
        """Reads a run's metrics.json, which may be missing, or of other weights, as far as it says."""
        try:
            metrics = json.loads((run / EVALUATION).read_text())
        except (OSError, ValueError):
            return cls("", [])
        weights = (value_at(metrics, "evaluation.files") or {}).get(MODEL)
        if weights is not None and weights != sha256_of(run / MODEL):
            return cls("", [])
        found = []
        for kind, (name, place, digits) in FIGURES.items():
            value = value_at(metrics, place)
            if isinstance(value, (int, float)):
                found.append({"type": kind, "name": name, "value": round(value, digits)})
        return cls(value_at(metrics, "evaluation.data.name") or "", found)


def value_at(values: Any, place: str) -> Any:
    """A value in nested dictionaries, by its keys with dots between; None if there is none."""
    for key in place.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values
