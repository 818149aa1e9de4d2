"""Faces moved as far as each needs, beside faces that are all moved alike, where both ways flip as many."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine.errors import InvalidRequest
from engine.latents import Conditions
from trainer.evaluation.edits.faces import SIDES, EditedFaces
from trainer.evaluation.edits.quality import EditQuality
from trainer.evaluation.encoded_run import Floats, Images
from trainer.evaluation.identity import Recogniser, similarity
from trainer.evaluation.networks import MetricNetwork
from trainer.evaluation.skipped import SkippedError

FACES = 128  # faces an edit at most
STRONGEST, HALVINGS = 4.0, 8
"""Largest strength that is tried for all alike, and how often the range is halved in looking for the right one."""

Edit = Callable[[Floats], Floats]  # latents (N, D) to edited ones


def compare(
    test: EditedFaces, val: EditedFaces, names: Sequence[str], network: MetricNetwork[Recogniser]
) -> dict[str, Any]:
    """Adds and removes attributes both ways: `Conditions` (each face as far as it needs), and one strength for all.

    The strength is the least that flips as many val faces as conditions do.

    Returns:
        `faces` an edit at most, `network`; `edits`: by edit, such as "adding Smiling", `conditional` and `alike`: an
        `EditQuality` of test faces, whose strength is the mean distance, and `identity`, the mean cosine similarity of
        faces before and after (None without a network).

    Raises:
        SkippedError: the run's directions do not say where their sides are.
    """
    work = [(name, side) for name in names for side in SIDES]
    edits = {}
    for name, side in tqdm(work, "edits both ways", unit="edit", delay=3, leave=False, disable=None):
        sign = SIDES[side]
        faces, tried = (split.lacking(name, sign, FACES) for split in (test, val))
        if not len(faces) or not len(tried):
            continue
        conditional = _conditional(test, name, sign)
        wanted = _judge(val, tried, name, sign, conditional)[0].flipped or 0.0
        low, high = 0.0, STRONGEST
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            quality, _images = _judge(val, tried, name, sign, _move(test, name, sign * middle))
            low, high = (low, middle) if (quality.flipped or 0.0) >= wanted else (middle, high)
        before = test.encoded.decode(test.mu[faces])
        ways: dict[str, Any] = {}
        for way, edit in (("conditional", conditional), ("alike", _move(test, name, sign * high))):
            quality, after = _judge(test, faces, name, sign, edit)
            same = None if network.network is None else float(similarity(network.network, before, after).mean())
            ways[way] = {**asdict(quality), "identity": same}
        edits[f"{side} {name}"] = ways
    return {"faces": FACES, "network": network.description, "edits": edits}


def _conditional(split: EditedFaces, name: str, sign: int) -> Edit:
    try:
        return Conditions.of(split.encoded.directions, *(([name], []) if sign > 0 else ([], [name]))).project
    except InvalidRequest as error:
        raise SkippedError(str(error)) from error


def _move(split: EditedFaces, name: str, strength: float) -> Edit:
    step = split.encoded.directions.move([(name, strength)]).step
    return lambda latents: latents + step


def _judge(
    split: EditedFaces, faces: NDArray[np.int64], name: str, sign: int, edit: Edit
) -> tuple[EditQuality, Images]:
    """The quality of an edit of some faces, and the edited images."""
    before = split.mu[faces]
    after = edit(before)
    length = np.linalg.norm(split.encoded.directions[name])
    distance = sign * float(np.linalg.norm(after - before, axis=1).mean() / length)
    images = split.encoded.decode(after)
    return split.quality(faces, name, distance, split.judge.logits(images)), images
