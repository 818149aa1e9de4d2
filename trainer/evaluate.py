"""Judging a run on held-out images: the table of contents. `trainer.measures` holds what is measured, and how.

Left in the run folder: metrics.json (strict JSON; a part that could not be measured is `{"skipped": reason}`), figures/
and report.html, which shows all of it.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from trainer import checkpoint
from trainer.card import write_card
from trainer.checkpoint import EVALUATION
from trainer.classifier import classifier_of
from trainer.config import TrainConfig
from trainer.dataset import FaceData
from trainer.errors import ConfigError
from trainer.measures import (
    album,
    edit_figures,
    edit_judge,
    editing,
    encoding,
    generation,
    networks,
    prediction,
    reconstruction,
    report,
    vectors,
)
from trainer.measures.networks import Instrument, NetworkT
from trainer.measures.plate import Plate
from trainer.measures.prediction import NO_ATTRIBUTES, Split
from trainer.measures.skipped import SkippedError, attempt
from trainer.measures.subject import Subject
from trainer.options import Measure, Options
from trainer.placement import Placement

logger = logging.getLogger(__name__)

REPORT, FIGURES = "report.html", "figures"


@dataclass(frozen=True)
class Instruments:
    """The networks that are measured with."""

    vgg: Instrument[networks.Features]
    lpips: Instrument[nn.Module]
    inception: Instrument[FrechetInceptionDistance]

    @classmethod
    def of(cls, options: Options, config: TrainConfig, place: Placement) -> Instruments:
        """Finds them.

        Raises:
            ConfigError: a file of weights is missing or does not fit.
        """

        def find(
            name: Measure, load: Callable[[Path | None], tuple[NetworkT, str]], weights: Path | None
        ) -> Instrument[NetworkT]:
            if name in options.skip:
                return Instrument(None, f"left out by --skip {name}")
            return Instrument.of(load, weights)

        def vgg19(given: Path | None) -> tuple[networks.Features, str]:
            own = config.vgg_weights
            if given is not None or own is None or not own.is_file():
                return networks.vgg19(given, place)
            try:
                return networks.vgg19(own, place)
            except ConfigError as error:
                raise SkippedError(f"the file that the run was trained with will not do ({error})") from error

        return cls(
            find("vgg", vgg19, options.vgg_weights),
            find("lpips", networks.lpips, options.lpips_weights),
            find("fid", networks.inception, options.inception_weights),
        )


def evaluate(run: Path, data: FaceData, options: Options | None = None) -> dict[str, Any]:
    """Measures a run on the test split; writes metrics.json, figures/ and report.html into its folder.

    Args:
        run: a finished run folder.
        data: the data set, packed at the model's size.
        options: how; default: `Options()`.

    Returns:
        What metrics.json holds. `evaluation`: when, where, how long, on how many images. The other parts are described
        where they are measured, in `trainer.measures`: `reconstruction`, `generation`, `encoding.summary`,
        `attribute_prediction` in `prediction`, `vectors` in `vectors.correlation`, `classifier` in `edit_judge` and
        `edits` in `editing`.

    Raises:
        RunError: the run has no weights or no directions.
        ConfigError: a file of weights is missing or does not fit.
    """
    options = options or Options()
    began = time.monotonic()
    config, resolved = checkpoint.load_config(run)
    place = Placement.of()
    instruments = Instruments.of(options, config, place)
    subject = Subject.of(run, data, place)
    samples = encoding.posterior_samples(subject.mu, subject.log_var, options.seed)
    splits = Split(subject.train_mu, subject.train_labels), Split(subject.mu, subject.labels)

    metrics: dict[str, Any] = {"evaluation": {}}
    logger.info("reconstruction and generation")
    metrics["reconstruction"] = reconstruction.measure(subject, instruments.vgg, instruments.lpips)
    metrics["generation"] = generation.measure(subject, instruments.vgg, instruments.inception, options.seed)
    logger.info("encoding and attributes")
    metrics["encoding"] = {"split": "test", **encoding.summary(subject.mu, subject.log_var, samples)}
    metrics["attribute_prediction"] = attempt(lambda: prediction.measure(subject.attributes, *splits))
    metrics["vectors"] = attempt(lambda: vectors.correlation(subject.directions))
    logger.info("edits")
    metrics |= edits(subject, options, instruments)
    logger.info("figures")
    folder = run / FIGURES
    plates = draw(subject, metrics, folder, options)
    metrics["evaluation"] = about(subject, options, time.monotonic() - began)
    write_metrics(run / EVALUATION, metrics)
    configuration = {**config.to_json(), "resolved": resolved}
    page = report.page(
        f"{run.resolve().name}, preset {config.preset}", metrics, report.embed(plates, folder), configuration
    )
    checkpoint.write_atomically(run / REPORT, lambda file: file.write_text(page, encoding="utf-8"))
    write_card(run)
    return metrics


def edits(subject: Subject, options: Options, instruments: Instruments) -> dict[str, Any]:
    """The parts `classifier` and `edits`; the classifier is trained if the run folder has none for these data."""
    if not subject.attributes:
        reason = NO_ATTRIBUTES
    elif "edits" in options.skip:
        reason = "left out by --skip edits"
    else:
        judge = classifier_of(subject.run, subject.data, subject.place)
        return {
            "classifier": edit_judge.measure(subject, judge),
            "edits": attempt(
                lambda: editing.measure(subject, judge, options.strength, instruments.vgg, instruments.lpips)
            ),
        }
    return {"classifier": {"skipped": reason}, "edits": {"skipped": reason}}


def draw(subject: Subject, metrics: dict[str, Any], folder: Path, options: Options) -> list[Plate]:
    """Draws what was measured, into a folder that has no other figures then."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    plates = album.draw(subject, metrics, folder, options.seed)
    if "skipped" not in metrics["edits"]:
        plates += edit_figures.draw(subject, metrics["edits"], metrics["classifier"]["unsure"], folder)
    if "tsne" not in options.skip:
        plates += album.draw_map(subject, folder, options.seed)
    return plates


def about(subject: Subject, options: Options, seconds: float) -> dict[str, Any]:
    """When, where, how long and on how many images a run was measured."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
        "device": str(subject.place.device),
        "images": {"train": len(subject.train_rows), "test": len(subject.rows)},
        "strength": options.strength,
        "seed": options.seed,
        "skip": list(options.skip),
    }


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Writes strict JSON, indented, with lists of numbers on one line.

    Raises:
        ValueError: a number is not finite; measures give null where there is none.
    """
    text = json.dumps(metrics, indent=2, allow_nan=False)
    text = re.sub(r"\[\n[-+.\de,\s]+\n\s*\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)
    checkpoint.write_atomically(path, lambda file: file.write_text(text + "\n"))
