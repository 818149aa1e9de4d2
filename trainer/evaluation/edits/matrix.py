"""The re-scoring matrix (InterFaceGAN, arXiv 2005.09635): what editing each attribute does to every attribute.

Shapes: E edited attributes, A attributes that the classifier judges, D latent_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from trainer.evaluation.edits.faces import SIDES, EditedFaces
from trainer.evaluation.edits.quality import Change, EditQuality
from trainer.evaluation.encoded_run import EncodedRun
from trainer.evaluation.prediction import mean_of

MATRIX_FACES, SELECTION_FACES = 100, 40
"""Faces an edit at most, in the matrix and in choosing what its `keep` names."""
NUM_KEPT = 5
RELATED = 0.5
"""Attributes whose labels correlate with the edited one's more than this are no side effects of it, but part of it, as
high cheekbones are of a smile: `keep` does not name them."""

Result = tuple[Change, list[EditQuality]]


def rescoring(test: EditedFaces, val: EditedFaces, strength: float) -> dict[str, Any]:
    """Adds each attribute to faces that lack it and removes it from faces that have it, and judges every attribute.

    Twice: `plain`, and `keep`, where the directions of the `NUM_KEPT` attributes that the plain edit moves most on the
    val split are projected out, those `RELATED` to the edited one aside. To keep all others would leave an edit little
    room. Even so a kept edit is a smaller one, as directions overlap: on real faces it moved its target 0.26 sigma and
    the others 0.07, where the plain one moved them 1.27 and 0.49 (mean differences, strength 1.5).

    Args:
        test: the faces that are measured.
        val: the faces that the kept attributes are chosen on.
        strength: of the edits.

    Returns:
        `edited` (E names), `judged` (A names), `faces` an edit at most, `kept_directions` (names, by name). Under
        `plain` and `keep`: `matrix` (E lists of A numbers: mean change of a logit, towards having what is added, in
        that logit's standard deviations over unedited reconstructions); `attributes`: by name, `adding` and `removing`
        (an `EditQuality` each; None if no face needs it) and `dependency` (`Change.dependency`); and means over the
        attributes: `target` and `others` (absolute changes in the matrix), `flipped`, `kept`, `kept_balanced`,
        `dependency`.
    """
    names = test.names
    sigma, val_sigma = (split.before.std(0, dtype=np.float64) for split in (test, val))
    related = _related(test.encoded, names)
    results: dict[str, list[Result]] = {"plain": [], "keep": []}
    kept_directions: dict[str, list[str]] = {}
    for name in tqdm(names, "re-scoring", unit="attribute", delay=3, leave=False, disable=None):
        chosen, _ = _edit_both_ways(val, name, strength, val_sigma, limit=SELECTION_FACES)
        by_size = [test.judge.attributes[column] for column in np.argsort(-np.abs(chosen.mean))]
        kept = [other for other in by_size if other in names and other not in related[name]][:NUM_KEPT]
        kept_directions[name] = kept
        for mode, names_kept in (("plain", []), ("keep", kept)):
            results[mode].append(_edit_both_ways(test, name, strength, sigma, limit=MATRIX_FACES, keep=names_kept))
    columns = [test.judge.attributes.index(name) for name in names]
    return {
        "edited": names,
        "judged": list(test.judge.attributes),
        "faces": MATRIX_FACES,
        "kept_directions": kept_directions,
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


def _edit_both_ways(
    split: EditedFaces,
    name: str,
    strength: float,
    sigma: NDArray[np.float64],
    *,
    limit: int,
    keep: Sequence[str] = (),
) -> Result:
    """Adds an attribute to faces that lack it and removes it from those that have it, where there are such faces."""
    changes, qualities = [], []
    for signed in (strength, -strength):
        faces = split.lacking(name, signed, limit)
        if len(faces):
            after = split.after(faces, name, signed, keep)
            changes.append(Change.of(split.before[faces], after, sigma, signed))
            qualities.append(split.quality(faces, name, signed, after))
    return Change.average(changes), qualities


def _summary(names: Sequence[str], columns: Sequence[int], results: Sequence[Result]) -> dict[str, Any]:
    """One mode as JSON; `columns` are those of the edited attributes among the judged ones."""
    attributes: dict[str, Any] = {}
    targets, others = [], []
    for name, column, (change, qualities) in zip(names, columns, results, strict=True):
        by_sign = {np.sign(found.strength): asdict(found) for found in qualities}
        sides = {side: by_sign.get(sign) for side, sign in SIDES.items()}
        attributes[name] = {**sides, "dependency": change.dependency(column)}
        targets.append(abs(float(change.mean[column])))
        others += np.abs(np.delete(change.mean, column)).tolist()
    return {
        "target": mean_of(targets),
        "others": mean_of(others),
        "flipped": mean_of(found.flipped for _, qualities in results for found in qualities),
        "kept": mean_of(found.kept for _, qualities in results for found in qualities),
        "kept_balanced": mean_of(found.kept_balanced for _, qualities in results for found in qualities),
        "dependency": mean_of(found["dependency"] for found in attributes.values()),
        "attributes": attributes,
        "matrix": [[round(float(value), 3) for value in change.mean] for change, _ in results],
    }
