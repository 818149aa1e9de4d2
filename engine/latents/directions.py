"""Latent arithmetic: attribute directions, and edits along them. Pure numpy.

Shapes: N latents of dimension D, A attributes, K kept directions.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors import safe_open

from engine.arrays import Doubles, Floats
from engine.errors import DirectionsError, InvalidField, InvalidRequest, UnknownAttribute
from engine.process.files import reading

Sides: TypeAlias = tuple[float, float]

UNKNOWN_KIND = "unknown"

# Stored directions are float32: parts of a kept span below this share of the largest one are rounding noise.
_SPAN_TOLERANCE = 1e-5

# With so small a share of its length left, an edit of any useful strength changes no picture.
_LEAST_SHARE = 0.01

# Below half the distance of the two largest float32 (1e31): a finite latent plus such a step rounds to a finite one.
_LARGEST_STEP = 1e30

# Sets of kept attributes are chosen by clients; this many are remembered.
_REMEMBERED_SPANS = 256


@dataclass(frozen=True)
class Move:
    """All edits of one request, summed up: the step, float32 [D], that is added to a latent.

    Added to any finite latent it gives a finite one; InvalidRequest is raised for one that is too large for that.
    """

    step: Floats

    def __post_init__(self) -> None:
        if not np.abs(self.step).max() <= _LARGEST_STEP:
            raise InvalidRequest(
                f"the edits add up to a step of {float(np.abs(self.step).max()):g}; at most {_LARGEST_STEP:g} is "
                "accepted, and a few units are useful",
                "edits",
            )


@dataclass(frozen=True)
class Directions:
    """Attribute directions of one model, as `trainer.artifacts.directions` makes them.

    Each is as long as the mean difference of its attribute, whatever its kind: strength 1, as protos/dfcvae.proto
    defines it, is one length of the stored vector.

    Raises:
        DirectionsError: When the parts don't agree in length, or a vector isn't finite.
    """

    names: tuple[str, ...]  # in the order of the rows
    vectors: Floats  # float32 [A, D], in units of the latent space (not normalised)
    positives: tuple[int, ...]  # how many images with each attribute went into its direction
    negatives: tuple[int, ...]  # and how many without it
    split: str  # images that they were computed from, for example "train"
    # How each was found: "mean", "adjusted", "svm"; "unknown" in files that do not say, and where none are given.
    kinds: tuple[str, ...] = ()
    model_sha256: str = ""  # of the file of weights whose latents they belong to; empty in files that do not say
    # Where images without each attribute and those with it lie along its direction on average, as multiples of the
    # stored vector; None where the file does not say.
    sides: tuple[Sides | None, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if not self.kinds:
            object.__setattr__(self, "kinds", (UNKNOWN_KIND,) * count)
        if not self.sides:
            object.__setattr__(self, "sides", (None,) * count)
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise DirectionsError(
                f"directions must be float32 [attributes, latent_dim], not {self.vectors.dtype} "
                f"{list(self.vectors.shape)}"
            )
        columns = ("vectors", "positives", "negatives", "kinds", "sides")
        if any(len(getattr(self, name)) != count for name in columns):
            found = ", ".join(f"{len(getattr(self, name))} {name}" for name in columns)
            raise DirectionsError(f"directions disagree: {count} names, {found}")
        if len(set(self.names)) != count:
            raise DirectionsError(f"attribute names repeat: {', '.join(self.names)}")
        if not np.isfinite(self.vectors).all():
            bad = self.names[int(np.argmin(np.isfinite(self.vectors).all(axis=1)))]
            raise DirectionsError(f"the direction of {bad!r} has values that are not finite")
        for name, sides in zip(self.names, self.sides, strict=True):
            if sides is not None and not np.isfinite(sides).all():
                raise DirectionsError(f"the sides of {name!r} are not finite: {sides[0]} and {sides[1]}")

    @property
    def latent_dim(self) -> int:
        """Dimension D of the latent space."""
        return int(self.vectors.shape[1])

    def __getitem__(self, name: str) -> Floats:
        """Direction of one attribute, float32 [D]. Raises as `named`."""
        return self.named(name)

    def move(self, moves: Sequence[tuple[Floats | str, float]], keep: Sequence[str] = ()) -> Move:
        """Sums up edits: every one adds `strength * vector`, of an attribute's name or a direction, float32 [D].

        With `keep`, only the part of each that is orthogonal to the span of all kept attributes' directions is applied
        (InterFaceGAN's conditional manipulation, arXiv 1907.10786).

        Raises:
            InvalidRequest: When a strength or direction isn't finite, a direction has another size, an attribute is
                both moved and kept, nothing is left of an edit beside what is kept, or the sum is too large for any
                use.
            UnknownAttribute: When this model has no direction of a name.
        """
        step, kept = np.zeros(self.latent_dim), frozenset(keep)
        if kept:
            self._basis_of(kept)  # names must be known, even where nothing is moved
        with np.errstate(over="ignore", invalid="ignore"):  # Move refuses what comes of it
            for index, (target, strength) in enumerate(moves):
                field = f"edits[{index}]"
                if not math.isfinite(strength):
                    raise InvalidField(f"{field}.strength", f"is {strength}; it must be a finite number")
                vector = self._vector(target, kept, field)
                if strength:
                    step += float(strength) * self._beside(vector, kept, target, field)
            return Move(step.astype(np.float32))

    def beside(self, name: str, keep: Sequence[str], field: str) -> Doubles:
        """The part of the direction [D] of an attribute, which `field` of the request names, without what is kept.

        Raises:
            InvalidRequest: When nothing is left of it, or the attribute is kept itself.
            UnknownAttribute: When this model has no direction of a name.
        """
        kept = frozenset(keep)
        return self._beside(self._vector(name, kept, field), kept, name, field)

    def _beside(self, vector: Doubles, kept: frozenset[str], target: Floats | str, field: str) -> Doubles:
        """The part of a vector that is orthogonal to the span of what is kept, if there is one."""
        if not kept:
            return vector
        basis = self._basis_of(kept)
        rest: Doubles = vector - basis.T @ (basis @ vector)
        # An edit that comes to nothing would give the unedited picture back.
        if rest @ rest < _LEAST_SHARE**2 * (vector @ vector):
            what = repr(target) if isinstance(target, str) else "the direction"
            raise InvalidField(
                field, f": nothing is left of {what} when {', '.join(sorted(kept))} must stay; keep fewer"
            )
        return rest

    def _vector(self, target: Floats | str, kept: frozenset[str], field: str) -> Doubles:
        """Direction [D] of one edit."""
        if isinstance(target, str):
            if target in kept:
                raise InvalidField(field, f": {target!r} is both edited and kept; take it out of one of them")
            return self.named(target, field).astype(np.float64)
        if target.shape != (self.latent_dim,):
            raise InvalidField(
                f"{field}.direction",
                f"has the shape {list(target.shape)}; this model's latents have {self.latent_dim} values",
            )
        if not np.isfinite(target).all():
            raise InvalidField(f"{field}.direction", "has values that are NaN or infinite")
        return target.astype(np.float64)

    def named(self, name: str, field: str = "") -> Floats:
        """Direction of one attribute, float32 [D]; `field` of the request names it.

        Raises:
            UnknownAttribute: When this model has no direction of that name.
        """
        vector = self._vector_of.get(name)
        if vector is None:
            known = ", ".join(self.names) or "none at all"
            raise UnknownAttribute(f"unknown attribute {name!r}; this model has: {known}", field)
        return vector

    @cached_property
    def _vector_of(self) -> dict[str, Floats]:
        return dict(zip(self.names, self.vectors, strict=True))

    @cached_property
    def _basis_of(self) -> Callable[[frozenset[str]], Doubles]:
        """Orthonormal rows [at most K, D] that span the directions of a set of names; those in use are remembered."""

        @lru_cache(_REMEMBERED_SPANS)
        def basis(names: frozenset[str]) -> Doubles:
            vectors = np.stack([self.named(name, "keep") for name in sorted(names)]).astype(np.float64)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            units = vectors / np.where(lengths > 0, lengths, 1.0)
            _, sizes, rows = np.linalg.svd(units, full_matrices=False)
            return rows[sizes > _SPAN_TOLERANCE * max(float(sizes[0]), 1.0)]

        return basis

    @classmethod
    def load(cls, path: str | Path) -> "Directions":
        """Reads a safetensors file of the trainer's: tensor `directions` [A, D]; everything else in its metadata.

        Raises:
            DirectionsError: When the file is missing, truncated, or not a directions file.
        """
        with reading(path, "a directions file", DirectionsError), safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            names = tuple(str(name) for name in json.loads(metadata["names"]))
            # Before there were attributes of the user's own, all directions of a file were of one `kind`.
            one_kind = json.dumps([metadata.get("kind", UNKNOWN_KIND)] * len(names))
            found = cls(
                names=names,
                vectors=file.get_tensor("directions"),
                positives=tuple(int(count) for count in json.loads(metadata["positives"])),
                negatives=tuple(int(count) for count in json.loads(metadata["negatives"])),
                split=metadata["split"],
                kinds=tuple(str(kind) for kind in json.loads(metadata.get("kinds", one_kind))),
                model_sha256=metadata.get("model_sha256", ""),
                sides=tuple(map(_sides, json.loads(metadata.get("sides", "[]")))),
            )
        return found


def _sides(pair: Any) -> Sides | None:
    if pair is None:
        return None
    without, having = pair
    return float(without), float(having)
