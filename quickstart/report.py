"""Judges the faces that came back over gRPC, and draws them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from quickstart.client import Job
from trainer.evaluation import grids, report
from trainer.evaluation.classifier import Classifier
from trainer.evaluation.edits.quality import quality


def judge(classifier: Classifier, jobs: list[Job], answers: Path, folder: Path) -> list[dict[str, Any]]:
    """Measures every edit as an image classifier sees it: an `EditQuality` a job, as a dictionary.

    The answers are the npz file that the client wrote. Strips of them go into the folder, one PNG a job.
    """
    results = []
    with np.load(answers) as arrays:
        for job in jobs:
            before, after, strips = (arrays[f"{job.name}/{key}"] for key in ("before", "after", "strips"))
            logits = classifier.logits(before), classifier.logits(after)
            results.append(asdict(quality(classifier.attributes, job.attribute, job.strength, *logits)))
            columns = [f"{strength:+.1f}" if strength else "unedited" for strength in job.strip]
            title = f"{job.name.replace('_', ' ')}: strength in lengths of the mean difference"
            grids.save_grid(folder / f"{job.name}.png", title, list(strips), across=columns)
    return results


def summary(metrics: dict[str, Any]) -> str:
    """The trainer's verdict and what became of the edits over gRPC, as lines for the screen."""
    accuracy = metrics["classifier"]["accuracy"]
    lines = [report.verdict(metrics), f"{'edit over gRPC':<34}{'faces':>7}{'flipped':>9}{'kept':>8}{'judge':>8}"]
    for edit in metrics["served_edits"]:
        name = f"{edit['attribute']} at strength {edit['strength']:+.1f}"
        shares = edit["flipped"], edit["kept"], accuracy[edit["attribute"]]
        flipped, kept, right = (report.percent(share, "-") for share in shares)
        lines.append(f"{name:<34}{edit['faces']:>7}{flipped:>9}{kept:>8}{right:>8}")
    return "\n".join(lines)
