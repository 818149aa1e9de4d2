"""Edits of held-out faces as an image classifier sees them: flips, side effects and distances.

Shapes: D latent_dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from trainer.artifacts.directions import KINDS, directions_of
from trainer.evaluation import identity, reconstruction
from trainer.evaluation.classifier import Classifier
from trainer.evaluation.edits import conditions, matrix
from trainer.evaluation.edits.faces import MAX_EDITED, SIDES, EditedFaces, preferred
from trainer.evaluation.edits.quality import EditQuality, best_strength
from trainer.evaluation.encoded_run import EncodedRun, Floats, Images
from trainer.evaluation.networks import MetricNetwork, MetricNetworks
from trainer.evaluation.options import Options
from trainer.evaluation.prediction import NO_ATTRIBUTES
from trainer.evaluation.skipped import SkippedError, attempt

JUDGED_ATTRIBUTES = ("Smiling", "Eyeglasses")
"""Those of the seed document's figures: measured at many strengths, and drawn."""
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
CURVE_FACES, DISTANCE_FACES = 200, 64  # faces an edit at most, at many strengths and in the distances
KEPT_SHARE = 0.9
"""Share of the other predictions that an edit must leave alone for its strength to count as usable."""


def measure(encoded: EncodedRun, judge: Classifier, options: Options, networks: MetricNetworks) -> dict[str, Any]:
    """Edits the test split along every direction of the run.

    Returns:
        `strength`, `split`; `edits`: an `EditQuality` for adding and one for removing each of `judged`;
        `curves`: what `curves` gives; `conditions`: what `conditions.compare` gives; `rescoring`: what
        `matrix.rescoring` gives; `distances`: under `lpips` and `identity` what `distances` gives, or why they are
        skipped. Identity is a cosine similarity.

    Raises:
        SkippedError: there are no attributes, or the run has no directions of them.
    """
    if not encoded.attributes:
        raise SkippedError(NO_ATTRIBUTES)
    test = EditedFaces.of(encoded, judge, "test")
    if not test.names:
        raise SkippedError(
            "needs directions of the data set's attributes, and this run has none; train on data with attributes, "
            "20 images on either side of each"
        )
    val, strength = EditedFaces.of(encoded, judge, "val"), options.strength

    def rescoring() -> dict[str, Any]:
        if "rescoring" in options.skip:
            raise SkippedError("left out by --skip rescoring")
        if len(judge.attributes) < 2:
            raise SkippedError(f"{test.names[0]} is the data set's only attribute, so there are no others to look at")
        return matrix.rescoring(test, val, strength)

    def lpips(network: Any, before: Images, after: Images) -> float:
        return float(reconstruction.lpips_distance(network, before, after, encoded.place)["lpips"])

    def same_person(network: Any, before: Images, after: Images) -> float:
        return float(identity.similarity(network, before, after).mean())

    return {
        "strength": strength,
        "split": "test",
        "edits": [
            asdict(_curve(test, name, name, [signed], MAX_EDITED)[0])
            for name in judged(test)
            for signed in (strength, -strength)
        ],
        "curves": curves(test, val, compare="kinds" not in options.skip),
        "conditions": attempt(lambda: conditions.compare(test, val, judged(test), networks.recogniser)),
        "rescoring": attempt(rescoring),
        "distances": {
            "lpips": attempt(lambda: distances(test, strength, networks.lpips, lpips)),
            "identity": attempt(lambda: distances(test, strength, networks.recogniser, same_person)),
        },
    }


def judged(test: EditedFaces) -> list[str]:
    """Those of `JUDGED_ATTRIBUTES` that can be edited; where there is none, the first attributes that can."""
    return preferred(JUDGED_ATTRIBUTES, test.names)


def curves(test: EditedFaces, val: EditedFaces, compare: bool = True) -> dict[str, Any]:
    """Flips against kept predictions at `STRENGTHS`, and at the best strength, for every kind of direction.

    With `compare` off, for the run's own kind alone. Other kinds are computed from the train split, for attributes that
    have images enough there.

    The best strength is the one that flips most val faces while `KEPT_SHARE` of the other predictions stay. What it
    does is measured on test faces, where a little more or less may stay.

    Returns:
        `served`: the kind of the run's own directions; "served" where their file does not say it or they are of
        several. `kept_share`. `attributes`: by attribute, side (`adding`, `removing`) and kind, `points` (an
        `EditQuality` each, of test faces) and `best`, the `EditQuality` of test faces at the best strength, None where
        a split has no faces to judge.
    """
    names, encoded, directions = judged(test), test.encoded, test.encoded.directions
    stored = {kind for name, kind in zip(directions.names, directions.kinds, strict=True) if name in names}
    served = stored.pop() if len(stored) == 1 and stored <= set(KINDS) else "served"
    kinds: dict[str, dict[str, Floats]] = {}
    for each in KINDS if compare else ():
        computed = directions_of(encoded.train_mu, encoded.train_labels, encoded.attributes, each, names)
        kinds[each] = {direction.name: direction.vector for direction in computed}
    kinds[served] = {name: directions[name] for name in names}
    found: dict[str, Any] = {name: {side: {} for side in SIDES} for name in names}
    work = [(name, side, kind) for name in names for side in SIDES for kind in kinds if name in kinds[kind]]
    for name, side, kind in tqdm(work, "edits at many strengths", unit="curve", delay=3, leave=False, disable=None):
        vector, strengths = kinds[kind][name], [SIDES[side] * size for size in STRENGTHS]
        points, tried = (_curve(split, name, vector, strengths) for split in (test, val))
        strength = best_strength(tried, KEPT_SHARE)
        best = None if strength is None else asdict(_curve(test, name, vector, [strength])[0])
        found[name][side][kind] = {
            "points": [asdict(point) for point in points],
            "best": best if best and best["faces"] else None,
        }
    return {"served": served, "kept_share": KEPT_SHARE, "attributes": found}


def _curve(
    split: EditedFaces, name: str, target: str | Floats, strengths: Sequence[float], limit: int = CURVE_FACES
) -> list[EditQuality]:
    """What edits along a direction of one attribute flip and keep, at several strengths of one sign."""
    faces = split.lacking(name, strengths[0], limit)
    return [split.quality(faces, name, strength, split.after(faces, target, strength)) for strength in strengths]


def distances(
    test: EditedFaces, strength: float, network: MetricNetwork[Any], compare: Callable[[Any, Images, Images], float]
) -> dict[str, Any]:
    """How different a network finds faces before and after edits of `JUDGED_ATTRIBUTES`.

    `compare` gives the mean distance of two sets of images (N, S, S, 3), as the network sees it.

    Returns:
        `network` and `network_sha256`; `edits`: by edit, such as "adding Smiling"; `different_faces`: the same between
        unedited faces of different images, to compare with; `images` an edit at most.

    Raises:
        SkippedError: there is no network.
    """
    sees, edits = network.get(), {}
    for name in judged(test):
        for side, sign in SIDES.items():
            faces = test.lacking(name, sign, DISTANCE_FACES)
            if len(faces):
                before, after = (test.encoded.edit(test.mu[faces], name, size) for size in (0.0, sign * strength))
                edits[f"{side} {name}"] = compare(sees, before, after)
    some = test.encoded.decode(test.mu[:DISTANCE_FACES])
    return {
        **network.about,
        "edits": edits,
        "different_faces": compare(sees, some, np.roll(some, 1, axis=0)),
        "images": DISTANCE_FACES,
    }
