"""What presets reach with the same number of images: each is trained on the same faces, and judged alike.

    python benchmarks/quality.py --data celeba --vgg-weights vgg19.pth --out out/quality

trains and evaluates every row of the table, and prints it. A row is a preset and flags of `python -m trainer train`
(`--taps` with nothing behind it: no feature term); rows can be made one at a time, also side by side in several
processes, and with other data:

    python benchmarks/quality.py --data celeba --out out/quality --variants "best --taps" "best --taps --seed 1"
    python benchmarks/quality.py --data celeba128 --out out/quality --variants "best --image-size 128"
    python benchmarks/quality.py --out out/quality --variants

the last of which only prints what is there. Interrupted, a command goes on where it was. Rows that differ in --seed
alone are averaged in a row of their own.

Every row sees --images images in training, as many epochs of all training faces as that makes. Presets whose epochs are
part of what they are (`seed`, `paper-...`) keep them, on as few faces as that takes.

All rows of one data set are judged by one classifier, trained on it once and kept in --out. A network of another
project has a row, too, if `trainer.evaluation.evaluate.evaluate_autoencoder` has written its metrics.json into a folder
in --out; docs/benchmarks.md says how some that are well known are trained.
"""

from trainer.extras import require

if __name__ == "__main__":
    require("train")  # before what needs it is imported

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from filelock import FileLock
from script import main_of, write_json
from serving.figures import markdown

from trainer.artifacts.model_card import value_at
from trainer.data import FaceData, load_data, read_index
from trainer.errors import ConfigError
from trainer.evaluation.classifier import classifier_of
from trainer.evaluation.options import Measure
from trainer.hardware.device import Placement
from trainer.presets import PRESETS
from trainer.run_folder import EVALUATION

VARIANTS = (
    "seed",
    "paper-123",
    "paper-345",
    "plain",
    "best --taps",
    "best --attribute-weight 0",
    "best",
    "best --taps --seed 1",
    "best --taps --seed 2",
    "best --seed 1",
    "best --seed 2",
)
OWN_EPOCHS = ("seed", "paper-123", "paper-345")
EDITS = ("adding Smiling", "removing Smiling", "adding Eyeglasses", "removing Eyeglasses")
ROW = "row.json"
"""In a run folder: the variant that it is of."""
SKIPPED: tuple[Measure, ...] = ("lpips", "fid", "tsne", "kinds", "rescoring")
"""Measures that have no column."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What to train, on what, for how long."""

    out: Path
    """Folder for the runs, one a row, and for the classifiers that judge them."""
    data: Path | None = None
    """Data set in CelebA's layout; not needed where nothing is left to train."""
    images: int = 112_000
    """Images that each row sees in training."""
    variants: tuple[str, ...] = VARIANTS
    """Rows to make: a preset each, and flags of the trainer behind it. None: print what is there."""
    crop: int = 148
    """Side of the centre crop, pixels; 0 for images that are cropped already."""
    vgg_weights: Path | None = None
    """File with VGG19 weights, for training with features and for measuring with them."""
    identity_weights: Path | None = None
    """ONNX file with a face recognition network, for the column of identity."""
    json: Path | None = None
    """File to write all figures to."""

    def run(self, variant: str) -> Path:
        """The folder of a row."""
        return self.out / "-".join(part.strip("-") for part in shlex.split(variant))

    def check(self) -> None:
        """Refuses what would fail hours later."""
        for variant in self.variants:
            preset = next(iter(shlex.split(variant)), "")
            if preset not in PRESETS:
                raise ConfigError(f"--variants {variant!r}: unknown preset; the presets are {', '.join(PRESETS)}")
            if self.data is None and not (self.run(variant) / EVALUATION).exists():
                raise ConfigError(f"--variants {variant!r}: is not done yet; give --data, or leave it out")


def train_and_judge(config: QualityConfig, variant: str) -> None:
    """Trains and evaluates one variant, as far as that is not done yet."""
    run = config.run(variant)
    if (run / EVALUATION).exists():
        return
    assert config.data is not None
    preset, *flags = shlex.split(variant)
    trainer, data = [sys.executable, "-m", "trainer"], ["--data", str(config.data)]
    weights = [] if config.vgg_weights is None else ["--vgg-weights", str(config.vgg_weights)]
    featureless = preset == "plain" or re.search(r"--taps(?! *[^-\s])", " ".join(flags)) is not None
    budget = ["--crop", str(config.crop), *_budget(config.images, config.data, preset)]
    command = [*trainer, "train", "--preset", preset, *data, "--out", str(run), "--resume", *budget]
    subprocess.run([*command, *([] if featureless else weights), *flags], check=True)
    (run / ROW).write_text(json.dumps({"variant": variant}) + "\n")
    size = json.loads((run / "config.json").read_text())["config"]["model"]["image_size"]
    judged_by = judge(config.out, load_data(config.data, size, config.crop))
    recogniser = [] if config.identity_weights is None else ["--identity-weights", str(config.identity_weights)]
    command = [*trainer, "evaluate", str(run), *data, *weights, *recogniser]
    command += ["--judge", str(judged_by), "--skip", *SKIPPED]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _budget(images: int, data: Path, preset: str) -> list[str]:
    """Flags that make a run see so many images."""
    if preset in OWN_EPOCHS:
        return ["--limit-train", str(images // PRESETS[preset]().epochs)]
    return ["--epochs", str(max(1, round(images / len(read_index(data).rows("train")))))]


def judge(out: Path, data: FaceData) -> Path:
    """The classifier of a data set; the first row to get here trains it, others wait."""
    folder = out / f"judge-{data.images.shape[1]}px-{data.fingerprint[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        classifier_of(folder, data, Placement.of())
    return folder / "classifier.safetensors"


def read(out: Path) -> dict[str, dict[str, Any]]:
    """The metrics of every row that is done, by its name: those of `VARIANTS` first, in their order."""
    rows = {}
    for path in sorted(out.glob(f"*/{EVALUATION}")):
        metrics = json.loads(path.read_text())
        run = path.parent
        name = json.loads((run / ROW).read_text())["variant"] if (run / ROW).exists() else run.name
        best = {edit: best_of(metrics["edits"], edit) for edit in EDITS}
        rows[name] = {"training": training(run) if (run / "config.json").exists() else {}, "best": best, **metrics}
    return {name: rows[name] for name in (*VARIANTS, *rows) if name in rows}


def training(run: Path) -> dict[str, float]:
    """Images seen, epochs, and images a second of a run's training, from its last record."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rate = [record["images_per_second"] for record in records if "images_per_second" in record][-1]
    config = json.loads((run / "config.json").read_text())
    epochs = config["config"]["epochs"]
    return {"images": config["resolved"]["images"]["train"] * epochs, "epochs": epochs, "images_per_second": rate}


COLUMNS: dict[str, tuple[str, ...]] = {
    "epochs": (",.0f", "training.epochs"),
    "images": (",.0f", "training.images"),
    "PSNR, dB": (".2f", "reconstruction.psnr_db"),
    "SSIM": (".3f", "reconstruction.ssim"),
    "feature error": (".3f", "reconstruction.features.relative"),
    "KL, nats": (",.0f", "encoding.kl_nats"),
    "active units": (",.0f", "encoding.active_units"),
    "Fréchet, reconstructions": (".1f", "generation.frechet_vgg19.distance.reconstructions"),
    "Fréchet, mixture": (".1f", "generation.frechet_vgg19.distance.mixture"),
    "Fréchet, Gaussian": (".1f", "generation.frechet_vgg19.distance.fitted"),
    "Fréchet, N(0, I)": (".1f", "generation.frechet_vgg19.distance.prior"),
    "accuracy, %": (".1%", "attribute_prediction.accuracy_mean"),
    "balanced accuracy, %": (".1%", "attribute_prediction.balanced_accuracy_mean"),
    "average precision, %": (".1%", "attribute_prediction.average_precision_mean"),
    **{
        f"{edit}: flips / kept / balanced, %": (
            ".1%", *(f"best.{edit}.{share}" for share in ("flipped", "kept", "kept_balanced"))
        )
        for edit in EDITS
    },
    "identity, reconstructions": (".3f", "reconstruction.identity.similarity"),
    "identity, edits": (".3f", "edits.distances.identity.edits"),
    "identity, adding Smiling: each as far as needed / all alike": (
        ".3f", *(f"edits.conditions.edits.adding Smiling.{way}.identity" for way in ("conditional", "alike"))
    ),
    "identity, different faces": (".3f", "edits.distances.identity.different_faces"),
    "images/s": (",.0f", "training.images_per_second"),
}  # fmt: skip
"""What the table has of metrics.json: form of a number, and where it is; several in one column where they belong
together. Of several numbers in one place it has the mean."""


def find(metrics: dict[str, Any], place: str) -> float | None:
    """The number at a place of the metrics; None where there is none."""
    found = value_at(metrics, place)
    if isinstance(found, dict):
        found = mean(found.values()) if found else None
    return None if found is None else float(found)


def best_of(edits: dict[str, Any], edit: str) -> dict[str, Any]:
    """What an edit along the run's own direction does to test faces, at the strength that was chosen on val faces."""
    side, name = edit.split()
    curves = edits.get("curves", {})
    kinds = curves.get("attributes", {}).get(name, {}).get(side)
    return {} if kinds is None else kinds[curves["served"] or "served"]["best"] or {}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a variant, and one with mean and standard deviation for those that differ in their seed alone."""
    if not rows:
        return "no row is done yet"
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, metrics in rows.items():
        groups.setdefault(re.sub(r" --seed \d+", "", name), []).append(metrics)
    lines = [_line(f"`{name}`", [metrics]) for name, metrics in rows.items()]
    return markdown(lines + [_line(f"`{name}`, {len(of)} seeds", of) for name, of in groups.items() if len(of) > 1])


def _line(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    line = {"": name}
    for column, (form, *places) in COLUMNS.items():
        line[column] = " / ".join(_cell(form, [find(metrics, place) for metrics in rows]) for place in places)
    return line


def _cell(form: str, values: Sequence[float | None]) -> str:
    """The mean, and the standard deviation where there are several; of shares per cent, as the column's head says."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {stdev(known):{form}}" if len(known) > 1 else ""
    return f"{mean(known):{form}}{spread}".replace("%", "")


def attribute_table(rows: dict[str, dict[str, Any]]) -> str:
    """Accuracy of every attribute beside the majority class, Markdown, per cent."""
    known = {name: metrics["attribute_prediction"] for name, metrics in rows.items()}
    known = {name: linear for name, linear in known.items() if "skipped" not in linear}
    majority = next(iter(known.values()))["majority"] if known else {}
    lines = []
    for attribute, share in majority.items():
        shares = {"majority": share} | {f"`{name}`": of["accuracy"].get(attribute) for name, of in known.items()}
        lines.append({"": attribute, **{name: _cell(".1%", [one]) for name, one in shares.items()}})
    return markdown(lines)


def notes(rows: dict[str, dict[str, Any]]) -> str:
    """What the table was made with: data, judge, numbers of faces, networks; a line each."""
    found: dict[str, None] = {}
    for name, metrics in rows.items():
        if note := metrics["training"].get("note"):
            found[f"`{name}`: {note}"] = None
        data, classifier = metrics["evaluation"]["data"], metrics["classifier"]
        counts = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
        right = "no judge" if "skipped" in classifier else f"the judge is right in {classifier['accuracy_mean']:.1%}"
        found[f"data set {data['name']} ({data['fingerprint'][:8]}): {counts} faces; {right}"] = None
        faces = (f"{edit} {best.get('faces', 0)}" for edit, best in metrics["best"].items())
        found[f"edited test faces, `{name}`: {', '.join(faces)}"] = None
        measured = {**metrics["reconstruction"], **metrics["generation"]}
        for key in ("features", "frechet_vgg19", "identity"):
            found[f"{key}: {measured[key].get('network', measured[key].get('skipped'))}"] = None
    return "\n".join(f"- {line}" for line in found)


def quality(config: QualityConfig) -> None:
    """Makes the rows and prints the tables; a command that fails ends this one with its own exit code."""
    config.check()
    try:
        for variant in config.variants:
            train_and_judge(config, variant)
    except subprocess.CalledProcessError as failure:
        raise SystemExit(failure.returncode) from None
    rows = read(config.out)
    print(f"{table(rows)}\n\n{notes(rows)}\n\n{attribute_table(rows)}")
    write_json(config.json, rows)


main = main_of(QualityConfig, quality, __doc__)

if __name__ == "__main__":
    sys.exit(main())
