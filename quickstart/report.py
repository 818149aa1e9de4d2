"""Judges the faces that came back over gRPC, and draws them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from quickstart.client import STRIP_STRENGTHS, Job
from trainer.evaluation import grids
from trainer.evaluation.classifier import Classifier
from trainer.evaluation.edits.quality import quality


def judge(classifier: Classifier, jobs: list[Job], answers: Path, folder: Path) -> list[dict[str, Any]]:
    """Measures every edit as an image classifier sees it, and writes its strips.

    Args:
        classifier: the judge.
        jobs: what the client was told to do.
        answers: the npz file that it wrote.
        folder: where the strips go, one PNG a job.

    Returns:
        One `EditQuality` a job, as a dictionary.
    """
    results = []
    with np.load(answers) as arrays:
        for job in jobs:
            before, after, strips = (arrays[f"{job.name}/{key}"] for key in ("before", "after", "strips"))
            logits = classifier.logits(before), classifier.logits(after)
            results.append(asdict(quality(classifier.attributes, job.attribute, job.strength, *logits)))
            sign = 1 if job.strength > 0 else -1
            columns = [f"{sign * strength:+.1f}" if strength else "unedited" for strength in STRIP_STRENGTHS]
            title = f"{job.name.replace('_', ' ')}: strength in lengths of the mean difference"
            grids.save_grid(folder / f"{job.name}.png", title, list(strips), across=columns)
    return results


def summary(metrics: dict[str, Any]) -> str:
    """The measurements as lines for the screen."""
    reconstruction, encoding, judge_of = metrics["reconstruction"], metrics["encoding"], metrics["classifier"]
    linear = metrics["attribute_prediction"]
    lines = [
        f"reconstruction of {reconstruction['images']} held-out faces: PSNR {reconstruction['psnr_db']:.2f} dB, "
        f"SSIM {reconstruction['ssim']:.3f}",
        f"encoding: KL {encoding['kl_nats']:.1f} nats an image, {encoding['active_units']} of "
        f"{encoding['latent_dim']} dimensions active",
        f"attributes read off the latents by a linear model: {linear['accuracy_mean']:.1%} right "
        f"(always the majority: {linear['majority_mean']:.1%})",
        f"image classifier that judges the edits: {judge_of['accuracy_mean']:.1%} right on held-out faces "
        f"(always the majority: {judge_of['majority_mean']:.1%})",
        f"{'edit over gRPC':<34}{'faces':>7}{'flipped':>9}{'kept':>8}{'judge':>8}",
    ]
    for edit in metrics["served_edits"]:
        name = f"{edit['attribute']} at strength {edit['strength']:+.1f}"
        flipped, kept = (_percent(edit[share]) for share in ("flipped", "kept"))
        right = _percent(judge_of["accuracy"][edit["attribute"]])
        lines.append(f"{name:<34}{edit['faces']:>7}{flipped:>9}{kept:>8}{right:>8}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    """None, where there were no faces to judge, as a dash."""
    return "-" if share is None else f"{share:.1%}"
