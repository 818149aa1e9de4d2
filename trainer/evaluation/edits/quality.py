"""What a classifier's logits before and after an edit say of it.

Shapes: N faces, A attributes that the classifier judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.prediction import balanced_accuracy, mean_of

Logits = NDArray[np.float32]  # (N, A)


@dataclass(frozen=True)
class EditQuality:
    """What a classifier sees of one edit."""

    attribute: str  # the edited attribute
    strength: float  # in lengths of the mean difference; negative removes it
    faces: int  # held-out faces judged: those whose label and whose unedited reconstruction are on the other side
    # share of them that the classifier sees on the wanted side after the edit; None without faces
    flipped: float | None
    # share of its predictions of all other attributes that stay as they were before the edit; None without
    kept: float | None
    # the same, but every other attribute weighs alike, and in it the faces seen with it and those seen without. Most
    # attributes are rare, and what is not there hardly appears: that alone makes `kept` high. Attributes that it sees
    # on all of these faces or on none are left out; None if that leaves none.
    kept_balanced: float | None = None


def quality(attributes: Sequence[str], attribute: str, strength: float, before: Logits, after: Logits) -> EditQuality:
    """Counts what an edit flips and keeps; the sign of its strength says which side is wanted.

    `attributes` are the A names; `before` and `after` (N, A) are logits of the same faces without the edit and with it.
    """
    column, wanted = attributes.index(attribute), strength > 0
    seen_before, seen_after = before > 0, after > 0
    judged = seen_before[:, column] != wanted
    others_before, others_after = (np.delete(seen[judged], column, axis=1) for seen in (seen_before, seen_after))
    return EditQuality(
        attribute,
        float(strength),
        int(judged.sum()),
        float((seen_after[judged, column] == wanted).mean()) if judged.any() else None,
        float((others_before == others_after).mean()) if others_before.size else None,
        mean_of(balanced_accuracy(others_after, others_before)),
    )


def best_strength(curve: Sequence[EditQuality], kept: float) -> float | None:
    """The strength that flips most among those that keep a share of the other predictions.

    To be chosen on other faces than those that it is measured on. The curve is of one attribute and one sign, absolute
    strengths rising; between two of them everything is taken as linear.

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
