"""What presets reach with the same budget: each is trained on the same images for as many epochs, and judged alike.

    python benchmarks/quality.py --data celeba --vgg-weights vgg19.pth --epochs 12 --out out/quality

Every variant is a preset and flags of `python -m trainer train`. All are judged by one classifier, the first one's.
Interrupted, it goes on where it was.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("train")  # before what needs it is imported

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from trainer.checkpoint import EVALUATION
from trainer.classifier import CLASSIFIER

VARIANTS = ("plain", "paper-123", "best --attribute-weight 0", "best")
EDITS = (("Smiling", "adding"), ("Smiling", "removing"), ("Eyeglasses", "adding"), ("Eyeglasses", "removing"))


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What to train, on what, for how long."""

    data: Path
    """Data set in CelebA's layout."""
    out: Path
    """Folder for the runs, one of each variant."""
    epochs: int = 12
    """Passes over the train split, for every variant."""
    variants: tuple[str, ...] = VARIANTS
    """A preset each, and flags of the trainer behind it."""
    crop: int = 148
    """Side of the centre crop, pixels; 0 for images that are cropped already."""
    vgg_weights: Path | None = None
    """File with VGG19 weights, for training with features and for measuring with them."""
    json: Path | None = None
    """File to write all figures to."""


def train_and_judge(config: QualityConfig, variant: str, judge: Path | None) -> Path:
    """Trains and evaluates one variant, as far as that is not done yet.

    Args:
        config: the budget.
        variant: a preset and flags.
        judge: a classifier of the same data, or None to train one.

    Returns:
        The run folder.
    """
    preset, *flags = shlex.split(variant)
    run = config.out / "-".join(part.strip("-") for part in (preset, *flags))
    data = ["--data", str(config.data)]
    weights = [] if config.vgg_weights is None else ["--vgg-weights", str(config.vgg_weights)]
    plain = preset == "plain" and "--taps" not in flags
    budget = ["--epochs", str(config.epochs), "--crop", str(config.crop), *([] if plain else weights)]
    trainer = [sys.executable, "-m", "trainer"]
    subprocess.run(
        [*trainer, "train", "--preset", preset, *data, "--out", str(run), "--resume", *budget, *flags], check=True
    )
    if not (run / EVALUATION).exists():
        if judge is not None and judge != run / CLASSIFIER:
            shutil.copyfile(judge, run / CLASSIFIER)
        command = [*trainer, "evaluate", str(run), *data, *weights]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def training(run: Path) -> dict[str, float]:
    """Images a second and seconds of a run's training, from its last record."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rate = [record["images_per_second"] for record in records if "images_per_second" in record][-1]
    config = json.loads((run / "config.json").read_text())
    return {"images_per_second": rate, "images": config["resolved"]["images"]["train"] * config["config"]["epochs"]}


def table(metrics: dict[str, dict[str, Any]]) -> str:
    """One row a measure, one column a variant, Markdown."""
    rows: list[tuple[str, list[str]]] = [
        ("PSNR, dB", [f"{m['reconstruction']['psnr_db']:.2f}" for m in metrics.values()]),
        ("SSIM", [f"{m['reconstruction']['ssim']:.3f}" for m in metrics.values()]),
        ("LPIPS", [_number(m["reconstruction"]["lpips"], "lpips", "{:.3f}") for m in metrics.values()]),
        ("VGG19 feature error, relative", [_features(m) for m in metrics.values()]),
        ("KL, nats", [f"{m['encoding']['kl_nats']:.0f}" for m in metrics.values()]),
        *[
            (
                f"Fréchet distance on VGG19, {source}",
                [_frechet(m["generation"]["frechet_vgg19"], source) for m in metrics.values()],
            )
            for source in ("reconstructions", "fitted", "prior")
        ],
        ("attributes, mean accuracy, %", [_percent(_attributes(m)["accuracy_mean"]) for m in metrics.values()]),
        ("majority class, %", [_percent(_attributes(m)["majority_mean"]) for m in metrics.values()]),
        *[
            (f"{name}, accuracy, %", [_percent(_attributes(m)["accuracy"].get(name)) for m in metrics.values()])
            for name in ("Smiling", "Eyeglasses", "Male")
        ],
        *[
            (f"{side} {name}, best flips with 90 % kept, %", [_best(m, name, side) for m in metrics.values()])
            for name, side in EDITS
        ],
        ("training, images/s", [f"{m['training']['images_per_second']:.0f}" for m in metrics.values()]),
    ]
    lines = ["| | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows)])


def attribute_table(metrics: dict[str, dict[str, Any]]) -> str:
    """Accuracy of every attribute beside the majority class, Markdown, per cent."""
    first = _attributes(next(iter(metrics.values())))
    lines = ["| | majority | " + " | ".join(metrics) + " |", "|---|---|" + "---|" * len(metrics)]
    for name, share in first["majority"].items():
        cells = [_percent(_attributes(m)["accuracy"][name]) for m in metrics.values()]
        lines.append(f"| {name} | {_percent(share)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _attributes(metrics: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = metrics["attribute_prediction"]
    return found


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _number(values: dict[str, Any], key: str, form: str) -> str:
    return "skipped" if "skipped" in values else form.format(values[key])


def _features(metrics: dict[str, Any]) -> str:
    found = metrics["reconstruction"]["features"]
    return "skipped" if "skipped" in found else f"{sum(found['relative'].values()) / len(found['relative']):.3f}"


def _frechet(found: dict[str, Any], source: str) -> str:
    return "skipped" if "skipped" in found else f"{found['distance'][source]:.2f}"


def _best(metrics: dict[str, Any], name: str, side: str) -> str:
    curves = metrics["edits"].get("curves")
    if curves is None or name not in curves["attributes"]:
        return "skipped"
    kinds = curves["attributes"][name][side]
    best = kinds[curves["served"] or "served"]["best"]
    return "none" if best is None else f"{100 * best['flipped']:.1f} at {abs(best['strength']):g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code is that of the first command that failed, else 0."""
    config = tyro.cli(QualityConfig, args=arguments, prog="python benchmarks/quality.py", description=__doc__)
    metrics: dict[str, dict[str, Any]] = {}
    judge: Path | None = None
    for variant in config.variants:
        try:
            run = train_and_judge(config, variant, judge)
        except subprocess.CalledProcessError as failure:
            return int(failure.returncode)
        judge = judge or run / CLASSIFIER
        metrics[variant] = {**json.loads((run / EVALUATION).read_text()), "training": training(run)}
    print(f"{table(metrics)}\n\n{attribute_table(metrics)}")
    if config.json:
        config.json.write_text(json.dumps(metrics, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
