"""Judging a trained network on held-out images: the table of contents. `trainer.evaluation` holds what is measured.

Left in the run folder: metrics.json (strict JSON; a part that could not be measured is `{"skipped": reason}`), figures/
and report.html, which shows all of it.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from trainer import run_folder
from trainer.artifacts.model_card import write_card
from trainer.data import SPLITS, FaceData
from trainer.errors import ConfigError, RunError
from trainer.evaluation import figures, generation, latent_space, prediction, reconstruction, report
from trainer.evaluation.classifier import CLASSIFIER, Classifier, classifier_of
from trainer.evaluation.edits import curves
from trainer.evaluation.edits import figures as edit_figures
from trainer.evaluation.encoded_run import KIND, Autoencoder, EncodedRun
from trainer.evaluation.grids import Figure
from trainer.evaluation.networks import MetricNetworks
from trainer.evaluation.options import Options
from trainer.evaluation.prediction import NO_ATTRIBUTES, Split
from trainer.evaluation.skipped import attempt
from trainer.hardware.device import Placement
from trainer.run_folder import EVALUATION, METRICS

logger = logging.getLogger(__name__)

REPORT, FIGURES = "report.html", "figures"

_FILE_BYTES = 30_000_000
"""About what figures, report and classifier take on disk."""


@dataclass(frozen=True)
class Evaluation:
    """What is judged, on what, and where the result goes."""

    name: str  # of the network, as the report's title
    data: FaceData  # the data set
    own: bool | None  # whether it is the one that the network was trained on; None where that is not known
    out: Path  # folder that is written to
    options: Options  # how it is judged
    configuration: dict[str, Any]  # of the network, for the report
    training: dict[str, Any]  # `images` seen, `epochs`, `images_per_second` where this project did not train it
    files: dict[str, str]  # SHA-256 of the files of a run that are judged, by name
    log: Path | None = None  # what the network's training logged; None where it isn't known

    def check(self) -> None:
        """Keeps files of somebody else, and unasked the report of another data set, from being replaced.

        Raises:
            RunError: there are such in the folder that would be written to, or it lies in the data set.
        """
        out, root, made = self.out, self.data.index.root, made_with(self.out)
        run_folder.require_apart(out, root)
        written = [out / name for name in (FIGURES, EVALUATION, REPORT) if (out / name).exists()]
        if written and not made and not any((out / name).exists() for name in (run_folder.CONFIG, run_folder.LOCK)):
            raise RunError(
                f"{out} holds {written[0].name}, which no evaluation wrote; choose another folder with --out, or move "
                "that away"
            )
        if self.own is False:
            logger.warning("%s is not the data that %s was trained on; the report will say so", root, self.name)
        judged = made.get("data", {})
        # A report of an earlier version does not say of what data it is; it is taken to be of the run's own.
        same = judged["fingerprint"] == self.data.fingerprint if judged else self.own is not False
        if (out / EVALUATION).exists() and not same and not self.options.force:
            raise RunError(
                f"{out} holds the report of another data set ({judged.get('name', 'name unknown')}) than {root}; "
                "write this one elsewhere with --out FOLDER, or replace that with --force"
            )

    def judge(self, place: Placement) -> Classifier | None:
        """The classifier that the options name, if they name one; raises ConfigError if it is of other data."""
        given, data = self.options.judge, self.data
        if given is None or "edits" in self.options.skip:
            return None
        if judge := Classifier.load(given, data.fingerprint, place):
            return judge
        raise ConfigError(
            f"--judge {given}: is missing, torn or of other data than {data.index.root}; give the {CLASSIFIER} of an "
            "evaluation on these data, or leave it out"
        )

    def about(self, seconds: float, place: Placement) -> dict[str, Any]:
        """What was judged, on what, and how: `evaluation` of metrics.json.

        Returns:
            `date`, `seconds`, `device`; `data`: `name` of its folder, `fingerprint`, `runs_own` (whether the network
            was trained on it; null where that is not known) and `images` by split; `files`; `strength`, `seed` and
            `skip` as in `Options`.
        """
        return {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "seconds": round(seconds, 1),
            "device": str(place.device),
            "data": {
                "name": self.data.index.root.resolve().name,
                "fingerprint": self.data.fingerprint,
                "runs_own": self.own,
                "images": {split: len(self.data.rows(split)) for split in SPLITS},
            },
            "files": self.files,
            "strength": self.options.strength,
            "seed": self.options.seed,
            "skip": list(self.options.skip),
        }


def made_with(folder: Path) -> dict[str, Any]:
    """What the evaluation in a folder was made with, `evaluation` of its metrics.json; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / EVALUATION).read_text())["evaluation"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def evaluate(run: Path, data: FaceData, options: Options) -> dict[str, Any]:
    """Measures a finished run on the test split of data packed at the model's size.

    It writes metrics.json, figures/ and report.html into the run's folder, or where the options say.

    Returns:
        What metrics.json holds; each part is described where it is measured.

    Raises:
        RunError: the run has no weights or no directions, a report of another data set or somebody else's files would
            be replaced, or another process works in the folder.
        ConfigError: a file of weights is missing or does not fit.
    """
    config, resolved = run_folder.load_config(run)
    name, out = f"{run.resolve().name}, preset {config.preset}", options.out or run
    in_the_run = out.resolve() == run.resolve()
    if (out / run_folder.CONFIG).exists() and not in_the_run and not options.force:
        raise RunError(
            f"--out {out}: is the folder of another run than {run}, and for the report of that one; choose another "
            "folder, or write into it with --force"
        )
    own = data.fingerprint == resolved.get("data_fingerprint")
    configuration = {**config.to_json(), "resolved": resolved}
    evaluation = Evaluation(name, data, own, out, options, configuration, {}, digests(run), run / METRICS)
    metrics = _measure(evaluation, partial(EncodedRun.of, run, data), config.vgg_weights)
    if in_the_run:
        write_card(run)
    return metrics


def evaluate_autoencoder(
    autoencoder: Autoencoder,
    data: FaceData,
    out: Path,
    options: Options,
    *,
    name: str = "autoencoder",
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures any network that encodes and decodes faces as `evaluate` measures this project's.

    A network of another project, say, on the same images and by the same judge: docs/benchmarks.md has a whole example.

    Args:
        autoencoder: the network, in evaluation mode.
        data: the data set, packed at the network's size.
        out: folder to write to; made if need be.
        options: how.
        name: of the network, for the report.
        training: `images` that it saw, `epochs` and `images_per_second`, as far as they are known, for metrics.json.

    Returns and raises what `evaluate` does.
    """
    out = options.out or out
    configuration = {"name": name, "directions": KIND}
    evaluation = Evaluation(name, data, None, out, options, configuration, training or {}, {})
    return _measure(evaluation, partial(EncodedRun.of_autoencoder, autoencoder, data, out), None)


def _measure(evaluation: Evaluation, encode: Callable[[Placement], EncodedRun], own_vgg: Path | None) -> dict[str, Any]:
    """Refuses what is bad input; then measures, draws and writes everything, in the report's order."""
    options, out, place = evaluation.options, evaluation.out, Placement.of()
    evaluation.check()
    networks, judge = MetricNetworks.of(options, own_vgg, place), evaluation.judge(place)
    with run_folder.occupied(out, _FILE_BYTES):
        began = time.monotonic()
        encoded = encode(place)
        samples = latent_space.posterior_samples(encoded.mu, encoded.log_var, options.seed)
        splits = Split(encoded.train_mu, encoded.train_labels), Split(encoded.mu, encoded.labels)

        metrics: dict[str, Any] = {"evaluation": {}}
        logger.info("reconstruction and generation")
        metrics["reconstruction"] = reconstruction.measure(encoded, networks)
        metrics["generation"] = generation.measure(encoded, networks, options)
        logger.info("encoding and attributes")
        metrics["encoding"] = {"split": "test", **latent_space.summary(encoded.mu, encoded.log_var, samples)}
        metrics["attribute_prediction"] = attempt(lambda: prediction.measure(encoded.attributes, *splits))
        metrics["vectors"] = attempt(lambda: latent_space.correlation(encoded.directions))
        logger.info("edits")
        metrics |= edits(encoded, evaluation, networks, judge)
        logger.info("figures")
        drawn = draw(encoded, metrics, out / FIGURES, evaluation)
        metrics["evaluation"] = evaluation.about(time.monotonic() - began, place)
        if evaluation.training:
            metrics["training"] = evaluation.training
        run_folder.write_json(out / EVALUATION, metrics)
        page = report.page(evaluation.name, metrics, report.embed(drawn, out / FIGURES), evaluation.configuration)
        run_folder.write_atomically(out / REPORT, lambda file: file.write_text(page, encoding="utf-8"))
    return metrics


def edits(
    encoded: EncodedRun, evaluation: Evaluation, networks: MetricNetworks, given: Classifier | None
) -> dict[str, Any]:
    """The parts `classifier` and `edits`, by the given classifier, or one that is trained if there is none yet."""
    options = evaluation.options
    if not encoded.attributes or "edits" in options.skip:
        skipped = {"skipped": "left out by --skip edits" if encoded.attributes else NO_ATTRIBUTES}
        return {"classifier": skipped, "edits": skipped}
    if given is not None:
        given.save(evaluation.out / CLASSIFIER, evaluation.data.fingerprint)
    judge = given or classifier_of(evaluation.out, evaluation.data, encoded.place)
    return {
        "classifier": judge.trust(encoded.reconstructions, encoded.labels),
        "edits": attempt(lambda: curves.measure(encoded, judge, options, networks)),
    }


def draw(encoded: EncodedRun, metrics: dict[str, Any], folder: Path, evaluation: Evaluation) -> list[Figure]:
    """Draws what was measured and logged, into a folder that has no other figures then."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    drawn: list[Figure] = []
    if "skipped" not in metrics["edits"]:
        drawn += edit_figures.draw(encoded, metrics["edits"], metrics["classifier"]["unsure"], folder)
    drawn += figures.draw(encoded, metrics, folder, evaluation.options)
    return drawn if evaluation.log is None else drawn + figures.training_curves(evaluation.log, folder)


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of the files of a run that its evaluation depends on, by name."""
    files = [run / name for name in (run_folder.MODEL, run_folder.DIRECTIONS, run_folder.PRIOR)]
    return {file.name: run_folder.sha256_of(file) for file in files if file.is_file()}
