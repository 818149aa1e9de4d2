"""Edits as an image classifier sees them: does an engine's edit show what PyTorch's shows?

Pixels may differ a little everywhere without anybody noticing, or in the one place that makes a smile. So the run's
own classifier, which `trainer evaluate` trained on the images of the train split, is asked of every edited image
whether it has the attribute that was edited.

Shapes: N images, S image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.backends import Bytes

STRENGTH = 1.5
"""Size of the edits; each is made to both sides."""
WANTED = ("Smiling", "Eyeglasses")
"""What is edited where the run and its classifier know it."""
NO_RUN = "skipped: it takes the run's classifier; give --run"


@dataclass(frozen=True)
class Edit:
    """An edit of an attribute by a strength, in lengths of the mean difference."""

    attribute: str
    strength: float

    def __str__(self) -> str:
        return f"{self.attribute} {self.strength:+g}"


class Judge(Protocol):
    """Somebody who can tell attributes."""

    @property
    def what(self) -> str:
        """Who it is, for reports."""

    @property
    def attributes(self) -> Sequence[str]:
        """What it can tell."""

    def sees(self, images: Bytes, attribute: str) -> npt.NDArray[np.bool_]:
        """Whether images, uint8 [N, S, S, 3], have an attribute: [N]."""


@dataclass(frozen=True)
class RunJudge:
    """The classifier of a run.

    Attributes:
        what: Who it is, for reports.
        attributes: What it can tell.
        classifier: A `trainer.evaluation.classifier.Classifier`.
    """

    what: str
    attributes: tuple[str, ...]
    classifier: Any

    def sees(self, images: Bytes, attribute: str) -> npt.NDArray[np.bool_]:
        """Whether images, uint8 [N, S, S, 3], have an attribute: [N]."""
        seen: npt.NDArray[np.bool_] = self.classifier.predict(images)[:, self.attributes.index(attribute)]
        return seen


def judge_of(run: Path, fingerprint: str | None) -> RunJudge | str:
    """The judge of a run, or why there is none.

    Args:
        run: The run folder.
        fingerprint: Of the data that it was trained on.
    """
    # Imported here, so that bundles can be verified by themselves where there is no torch.
    from trainer.evaluation.classifier import CLASSIFIER, Classifier  # noqa: PLC0415
    from trainer.hardware.device import Placement  # noqa: PLC0415

    path = run / CLASSIFIER
    evaluate = "run `python -m trainer evaluate RUN --data DIR` first"
    if not path.is_file():
        return f"skipped: the run has no {CLASSIFIER}; {evaluate}"
    classifier = Classifier.load(path, fingerprint or "", Placement.of("cpu", "fp32"))
    if classifier is None:
        return f"skipped: {CLASSIFIER} is damaged or of other data than the run's; {evaluate}"
    accuracy = np.mean([classifier.accuracy[name] for name in classifier.attributes])
    what = f"the run's classifier ({accuracy:.1%} right on its test images)"
    return RunJudge(what, classifier.attributes, classifier)


def edits_for(known: Sequence[str], directions: Sequence[str]) -> list[Edit]:
    """The edits to judge: of `WANTED`, else of the first two attributes that judge and run both have."""
    common = [name for name in directions if name in known]
    chosen = [name for name in WANTED if name in common] or common[:2]
    return [Edit(name, sign * STRENGTH) for name in chosen for sign in (1, -1)]
