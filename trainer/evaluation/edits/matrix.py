"""The re-scoring matrix (InterFaceGAN, arXiv 2005.09635): what editing each attribute does to every attribute.

Shapes: E edited attributes, A attributes that the classifier judges.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine.errors import InvalidRequest
from trainer.evaluation.edits.faces import SIDES, EditedFaces
from trainer.evaluation.edits.quality import EditQuality, Logits
from trainer.evaluation.encoded_run import EncodedRun
from trainer.evaluation.prediction import mean_of

MATRIX_FACES, SELECTION_FACES = 100, 40
"""Faces an edit at most, in the matrix and in choosing what its `keep` names."""
NUM_KEPT = 5
RELATED = 0.5
"""Attributes whose labels correlate with the edited one's more than this are no side effects of it, but part of it, as
high cheekbones are of a smile: `keep` does not name them."""

Result = tuple[NDArray[np.float64], dict[str, EditQuality]]
"""The change of every logit (A,), and the quality of the edit by side."""


def rescoring(test: EditedFaces, val: EditedFaces, strength: float) -> dict[str, Any]:
    """Adds each attribute to faces that lack it and removes it from faces that have it, and judges every attribute.

    Twice: `plain`, and `keep`, where the directions of the `NUM_KEPT` attributes that the plain edit moves most on the
    val split are projected out, those `RELATED` to the edited one aside. To keep all others would leave an edit little
    room. Even so a kept edit moves its target less, too, as directions overlap.

    Returns:
        `edited` (E names), `judged` (A names), `faces` an edit at most, `kept_directions` (names, by name),
        `nothing_left` (names of edits that `keep` leaves nothing of: zeros in its matrix, not in its means). Under
        `plain` and `keep`: `matrix` (E lists of A numbers: mean change of a logit, towards having what is added, in
        that logit's standard deviations over unedited reconstructions); `attributes`: by name, `adding` and `removing`
        (an `EditQuality` each; None if no face needs it); and means over the attributes: `target` and `others`
        (absolute changes in the matrix), `flipped`, `kept`, `kept_balanced`.
    """
    names = test.names
    sigma, val_sigma = (split.before.std(0, dtype=np.float64) for split in (test, val))
    related = _related(test.encoded, names)
    results: dict[str, list[Result]] = {"plain": [], "keep": []}
    kept_directions: dict[str, list[str]] = {}
    nothing_left: list[str] = []
    for name in tqdm(names, "re-scoring", unit="attribute", delay=3, leave=False, disable=None):
        moved, _ = _edit_both_ways(val, name, strength, val_sigma, limit=SELECTION_FACES)
        by_size = [test.judge.attributes[column] for column in np.argsort(-np.abs(moved))]
        kept = [other for other in by_size if other in names and other not in related[name]][:NUM_KEPT]
        kept_directions[name] = kept
        results["plain"].append(_edit_both_ways(test, name, strength, sigma, limit=MATRIX_FACES))
        try:
            results["keep"].append(_edit_both_ways(test, name, strength, sigma, limit=MATRIX_FACES, keep=kept))
        except InvalidRequest:
            results["keep"].append((np.zeros(sigma.shape), {}))
            nothing_left.append(name)
    columns = [test.judge.attributes.index(name) for name in names]
    return {
        "edited": names,
        "judged": list(test.judge.attributes),
        "faces": MATRIX_FACES,
        "kept_directions": kept_directions,
        "nothing_left": nothing_left,
        **{mode: _summary(names, columns, found) for mode, found in results.items()},
    }


def _related(encoded: EncodedRun, names: Sequence[str]) -> dict[str, set[str]]:
    """For each attribute: itself, and those whose labels in the train split correlate with its own (Pearson's phi)."""
    columns = [encoded.attributes.index(name) for name in names]
    with np.errstate(invalid="ignore", divide="ignore"):  # an attribute that all images have correlates with none
        correlation = np.atleast_2d(np.corrcoef(encoded.train_labels[:, columns], rowvar=False))
    return {
        name: {other for other, phi in zip(names, row, strict=True) if abs(phi) > RELATED or other == name}
        for name, row in zip(names, correlation, strict=True)
    }


def change(before: Logits, after: Logits, sigma: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """How far an edit moves every logit, (A,), in units of that logit's standard deviation over unedited faces.

    What goes along with the edited attribute is positive, whether it is added or removed, as the sign of `strength`
    says. Where sigma (A,) is 0, the change counts as 0.
    """
    moved = np.divide(after.astype(np.float64) - before, sigma, out=np.zeros(after.shape), where=sigma > 0)
    mean: NDArray[np.float64] = np.sign(strength) * moved.mean(0)
    return mean


def _edit_both_ways(
    split: EditedFaces, name: str, strength: float, sigma: NDArray[np.float64], *, limit: int, keep: Sequence[str] = ()
) -> Result:
    """Adds an attribute to faces that lack it and removes it from those that have it, where there are such faces."""
    changes, qualities = [], {}
    for side, sign in SIDES.items():
        faces = split.lacking(name, sign, limit)
        if len(faces):
            after = split.after(faces, name, sign * strength, keep)
            changes.append(change(split.before[faces], after, sigma, sign))
            qualities[side] = split.quality(faces, name, sign * strength, after)
    return np.mean(changes, axis=0), qualities


def _summary(names: Sequence[str], columns: Sequence[int], results: Sequence[Result]) -> dict[str, Any]:
    """One mode as JSON; `columns` are those of the edited attributes among the judged ones."""
    matrix = np.array([moved for moved, _ in results])  # (E, A)
    target = np.zeros(matrix.shape, np.bool_)
    target[range(len(names)), columns] = True
    made = np.array([[bool(found)] for _, found in results])
    known = [quality for _, found in results for quality in found.values()]
    return {
        "target": mean_of(np.abs(matrix[target & made])),
        "others": mean_of(np.abs(matrix[~target & made])),
        **{part: mean_of(getattr(quality, part) for quality in known) for part in ("flipped", "kept", "kept_balanced")},
        "attributes": {
            name: {side: asdict(found[side]) if side in found else None for side in SIDES}
            for name, (_, found) in zip(names, results, strict=True)
        },
        "matrix": matrix.round(3).tolist(),
    }
