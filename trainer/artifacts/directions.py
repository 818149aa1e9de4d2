"""Attribute directions: what to add to a latent to give its face an attribute.

There are three kinds:

mean       mean mu of images that have the attribute minus mean mu of those that do not (seed; paper, section 4.3). The
           paper takes means of sampled z over 1,000 images a side; here they are of posterior means over a whole split.
adjusted   the difference that the attribute makes while others are held equal, as far as the data tell them apart:
           the mean difference without what other attributes bring along (glasses without age, say).
svm        the normal of a linear SVM (InterFaceGAN, arXiv 1907.10786).

All are as long as the mean difference of their attribute, so strength 1 is the same distance for each, which
protos/dfcvae.proto defines; they differ in where they point.

Adjusted directions edit best on real faces, and with fewer side effects; `trainer.evaluation.edits.curves` compares the
kinds, and `benchmarks/reports/` has figures.

Shapes: N images, D latent_dim, A attributes.
"""

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trainer.config import Kind
from trainer.data.index import shortened
from trainer.errors import RunError

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float64]
MIN_IMAGES = 20
"""Fewest images on either side of an attribute for its direction to be kept."""
ADJUSTMENT_PENALTY = 1.0
"""Of the other attributes' effects in `adjusted_differences`; infinity gives mean differences. At 0, of two attributes
that imply one another, such as a smile and high cheekbones, neither keeps much. Chosen from 0, 0.1, 0.3 and 1 on train
and val faces."""
SVM_C = 1e-3
"""Weight of the SVM's errors. Larger ones classify latents better, but their normals lean on dimensions in which faces
hardly differ: a step of the same length flips fewer faces (0.01: 27 % instead of 70 % glasses added)."""


@dataclass(frozen=True)
class Direction:
    """One attribute's direction."""

    name: str  # of the attribute
    vector: NDArray[np.float32]  # (D,) float32, as long as the mean difference
    positives: int  # images that have the attribute
    negatives: int  # images that do not
    kind: str  # how it was found; "unknown" in files of before they said so
    # Where images without it and those with it lie along the direction on average, as multiples of it; None in files of
    # before they said so, and where the direction has no length.
    sides: tuple[float, float] | None = None


def mean_differences(mu: NDArray[np.float32], labels: NDArray[np.bool_]) -> Vectors:
    """Mean mu (N, D) with each attribute minus mean mu without it, (A, D).

    Of the labels (N, A) each must hold for some images and not for others.
    """
    sums = labels.T.astype(np.float64) @ mu
    positives = labels.sum(0)[:, None]
    total: Vectors = mu.sum(0, dtype=np.float64)
    differences: Vectors = sums / positives - (total - sums) / (len(mu) - positives)
    return differences


def adjusted_differences(mu: NDArray[np.float32], labels: NDArray[np.bool_]) -> Vectors:
    """The difference that each attribute makes with the others held equal, at the length of the mean difference.

    For each attribute, mu is regressed on all attributes, standardised, by ridge regression that leaves the attribute's
    own coefficients free and penalises the others'. Without the penalty these would be its partial effects (covariance
    adjustment); with it, what cannot be told from the attribute itself stays in its direction.

    Shapes and labels as of `mean_differences`.
    """
    count, attributes = labels.shape
    standard = (labels - labels.mean(0)) / labels.std(0)
    correlation = standard.T @ standard / count
    moments = standard.T @ mu / count  # (A, D); the mean of mu does not matter, as the columns of `standard` sum to 0
    effects = [
        np.linalg.solve(correlation + np.diag(penalty), moments)[attribute]
        for attribute, penalty in enumerate(ADJUSTMENT_PENALTY * (1 - np.eye(attributes)))
    ]
    return _of_length(np.array(effects), mean_differences(mu, labels))


def svm_normals(mu: NDArray[np.float32], labels: NDArray[np.bool_]) -> Vectors:
    """Normals of one linear SVM an attribute, at the length of the mean difference.

    They are trained on standardised mu, both sides weighing the same; the normal is that of the boundary in the space
    of mu itself. Shapes and labels as of `mean_differences`.
    """
    from trainer.artifacts import linear_svm  # noqa: PLC0415  (start-up: training need not load it)

    spread = np.maximum(mu.std(0, dtype=np.float64), 1e-12)
    inputs = mu / spread
    normals = [linear_svm.fit(inputs, has, SVM_C, balanced=True)[0] / spread for has in labels.T]
    return _of_length(np.array(normals), mean_differences(mu, labels))


def _of_length(vectors: Vectors, references: Vectors) -> Vectors:
    """Each vector (A, D) scaled to the length of its reference."""
    lengths, wanted = (np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, references))
    scaled: Vectors = vectors * wanted / np.maximum(lengths, 1e-12)
    return scaled


KINDS: dict[Kind, Callable[[NDArray[np.float32], NDArray[np.bool_]], Vectors]] = {
    "mean": mean_differences,
    "adjusted": adjusted_differences,
    "svm": svm_normals,
}


def directions_of(
    mu: NDArray[np.float32],
    labels: NDArray[np.bool_],
    attributes: tuple[str, ...],
    kind: Kind = "mean",
    wanted: Collection[str] | None = None,
) -> list[Direction]:
    """The direction of every attribute with at least `MIN_IMAGES` images on either side; others are left out, logged.

    Of mu (N, D), labels (N, A) and their A names. `wanted` are those whose directions are asked for, None all; the
    others only have a say in adjusted directions.
    """
    asked = np.array([wanted is None or name in wanted for name in attributes], bool)
    warn_of_few(labels[:, asked], [name for name, ask in zip(attributes, asked, strict=True) if ask])
    positives = labels.sum(0)
    negatives = len(labels) - positives
    enough = np.minimum(positives, negatives) >= MIN_IMAGES
    used = np.flatnonzero(enough if kind == "adjusted" else enough & asked)
    if not (enough & asked).any():
        return []
    vectors = KINDS[kind](mu, labels[:, used]).astype(np.float32)
    found = []
    for column, vector in zip(used, vectors, strict=True):
        if asked[column]:
            counts = int(positives[column]), int(negatives[column])
            sides = _sides(mu, labels[:, column], vector)
            found.append(Direction(attributes[column], vector, *counts, kind, sides))
    return found


def warn_of_few(labels: NDArray[np.bool_], attributes: Sequence[str]) -> None:
    """Names those of A attributes that have too few images on a side for a direction, by the labels (N, A)."""
    positives = labels.sum(0)
    few = [
        f"{name} ({count} have it, {len(labels) - count} do not)"
        for name, count in zip(attributes, positives, strict=True)
        if min(count, len(labels) - count) < MIN_IMAGES
    ]
    if few:
        logger.warning("no direction for %s; each side needs %d images", ", ".join(shortened(few)), MIN_IMAGES)


def _sides(mu: NDArray[np.float32], has: NDArray[np.bool_], vector: NDArray[np.float32]) -> tuple[float, float] | None:
    """`Direction.sides` of mu (N, D), of which `has` (N,) says which have the attribute."""
    direction = vector.astype(np.float64)
    square = direction @ direction
    if not square:
        return None
    along = mu @ direction / square
    return float(along[~has].mean()), float(along[has].mean())


def save_directions(
    path: Path, directions: Sequence[Direction], latent_dim: int, split: str, model_sha256: str = ""
) -> None:
    """Writes directions.safetensors.

    One tensor `directions` (A, D) float32; metadata `names`, `positives`, `negatives`, `kinds`, `sides` (JSON lists,
    one entry a row), `split`, the images that they were computed from, and `model_sha256`, the weights whose latents
    they are of.
    `engine.latents.Directions` reads it.
    """
    vectors = np.array([d.vector for d in directions], np.float32).reshape(len(directions), latent_dim)
    metadata = {
        "names": json.dumps([d.name for d in directions]),
        "positives": json.dumps([d.positives for d in directions]),
        "negatives": json.dumps([d.negatives for d in directions]),
        "kinds": json.dumps([d.kind for d in directions]),
        "sides": json.dumps([d.sides for d in directions]),
        "split": split,
        "model_sha256": model_sha256,
    }
    save_file({"directions": vectors}, path, metadata)


def load_directions(path: Path) -> tuple[list[Direction], dict[str, str]]:
    """Reads what `save_directions` wrote, in this version or before, and the metadata; nothing where there is no file.

    Raises:
        RunError: the file is torn, or holds no directions.
    """
    if not path.exists():
        return [], {}
    try:
        with safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
            names, positives, negatives = (json.loads(metadata[key]) for key in ("names", "positives", "negatives"))
            kinds = json.loads(metadata.get("kinds", "null")) or [metadata.get("kind", "unknown")] * len(names)
            sides = [pair and tuple(pair) for pair in json.loads(metadata.get("sides", "[]"))] or [None] * len(names)
            rows = zip(names, file.get_tensor("directions"), positives, negatives, kinds, sides, strict=True)
            return [Direction(*row) for row in rows], metadata
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read as attribute directions ({error}); delete it, then go on") from error
