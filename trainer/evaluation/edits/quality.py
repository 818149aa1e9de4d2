"""What a classifier's logits before and after an edit say of it.

Shapes: N faces, A attributes that the classifier judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.classifier import Classifier
from trainer.evaluation.encoded_run import Images

Logits = NDArray[np.float32]
"""(N, A)."""


@dataclass(frozen=True)
class EditQuality:
    """What a classifier sees of one edit.

    Attributes:
        attribute: the edited attribute.
        strength: in lengths of the mean difference; negative removes it.
        faces: held-out faces judged: those whose label and whose unedited reconstruction are on the other side.
        flipped: share of them that the classifier sees on the wanted side after the edit; None without faces.
        kept: share of its predictions of all other attributes that stay as they were before the edit; None without.
        kept_balanced: the same, but every other attribute weighs alike, and in it the faces seen with it and those seen
            without. Most attributes are rare, and what is not there hardly appears: that alone makes `kept` high.
            Attributes that it sees on all of these faces or on none are left out; None if that leaves none.
    """

    attribute: str
    strength: float
    faces: int
    flipped: float | None
    kept: float | None
    kept_balanced: float | None = None


def quality(attributes: Sequence[str], attribute: str, strength: float, before: Logits, after: Logits) -> EditQuality:
    """Counts what an edit flips and keeps.

    Args:
        attributes: the A names.
        attribute: the edited one.
        strength: of the edit; its sign says which side is wanted.
        before: logits of faces decoded without an edit.
        after: of the same faces, edited.
    """
    column, wanted = attributes.index(attribute), strength > 0
    seen_before, seen_after = before > 0, after > 0
    judged = seen_before[:, column] != wanted
    same = np.delete((seen_before == seen_after)[judged], column, axis=1)
    return EditQuality(
        attribute,
        float(strength),
        int(judged.sum()),
        float((seen_after[judged, column] == wanted).mean()) if judged.any() else None,
        float(same.mean()) if same.size else None,
        _balanced(same, np.delete(seen_before[judged], column, axis=1)),
    )


def _balanced(same: NDArray[np.bool_], seen: NDArray[np.bool_]) -> float | None:
    """Mean over attributes, of those seen on some faces and not on others, of the share kept on either side."""
    shares = [
        (kept[has].mean() + kept[~has].mean()) / 2
        for kept, has in zip(same.T, seen.T, strict=True)
        if has.any() and not has.all()
    ]
    return float(np.mean(shares)) if shares else None


def judge_edit(classifier: Classifier, attribute: str, strength: float, before: Images, after: Images) -> EditQuality:
    """Compares reconstructions with the same faces edited.

    Args:
        classifier: sees both.
        attribute: the edited one; must be among the classifier's.
        strength: of the edit; its sign says which side is wanted.
        before: (N, S, S, 3) uint8, decoded without an edit.
        after: the same faces, edited.
    """
    return quality(classifier.attributes, attribute, strength, classifier.logits(before), classifier.logits(after))


@dataclass(frozen=True)
class Change:
    """How far an edit moves every logit, in units of that logit's standard deviation over unedited faces.

    Attributes:
        mean: (A,) change towards the attribute where it is added, away from it where it is removed: what goes along
            with the edited attribute is positive either way.
        size: (A,) mean of the absolute changes of single faces.
    """

    mean: NDArray[np.float64]
    size: NDArray[np.float64]

    @classmethod
    def of(cls, before: Logits, after: Logits, sigma: NDArray[np.float64], strength: float) -> Change:
        """Measures it.

        Args:
            before: logits of faces decoded without an edit.
            after: of the same faces, edited.
            sigma: (A,) standard deviations; where one is 0, the change counts as 0.
            strength: of the edit; only its sign matters.
        """
        moved = np.divide(after.astype(np.float64) - before, sigma, out=np.zeros(after.shape), where=sigma > 0)
        return cls(np.sign(strength) * moved.mean(0), np.abs(moved).mean(0))

    @classmethod
    def average(cls, changes: Sequence[Change]) -> Change:
        """Of adding and removing, each weighing the same."""
        return cls(
            np.mean([change.mean for change in changes], axis=0), np.mean([change.size for change in changes], axis=0)
        )

    def dependency(self, column: int) -> float | None:
        """StyleSpace's attribute dependency (arXiv 2011.12799): how far the others move for one sigma of the target.

        The mean over the other attributes of `size`, over that of the target; None where the target does not move. What
        single faces do at random counts as well, so it favours large edits: compare those that move a target alike.
        """
        others = float(np.delete(self.size, column).mean()) if len(self.size) > 1 else 0.0
        target = float(self.size[column])
        return others / target if target > 0 else None


def best_strength(curve: Sequence[EditQuality], kept: float) -> float | None:
    """The strength that flips most among those that keep a share of the other predictions.

    To be chosen on other faces than those that it is measured on.

    Args:
        curve: one attribute and one sign, absolute strengths rising; between two of them everything is taken as linear.
        kept: the share that must be kept.

    Returns:
        The strength, with its sign, never 0: where none flips a face, one that keeps most. None where there are no
        faces to judge.
    """
    measured = [(c.strength, c.flipped, c.kept) for c in curve if c.flipped is not None and c.kept is not None]
    if not measured:
        return None
    points = [(0.0, 0.0, 1.0), *measured]  # no edit flips nothing and keeps everything
    candidates = [point for point in measured if point[2] >= kept]
    for (s0, f0, k0), (s1, f1, k1) in pairwise(points):
        if (k0 >= kept) != (k1 >= kept):
            share = (k0 - kept) / (k0 - k1)
            candidates.append((s0 + share * (s1 - s0), f0 + share * (f1 - f0), kept))
    strength, _, _ = max(candidates, key=lambda point: (point[1], point[2]))
    return round(strength, 3)
