"""Latent arithmetic: attribute directions, and edits along them. Pure numpy.

Shapes: N latents of dimension D, A attributes, K kept directions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from engine.errors import DirectionsError, InvalidRequest, UnknownAttribute

Floats = npt.NDArray[np.float32]

# Stored directions are float32: parts of a kept span below this share of the largest one are rounding noise.
_SPAN_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Directions:
    """Attribute directions of one model: mean mu of images with an attribute minus mean mu of those without.

    Attributes:
        names: Attribute names, in the order of the rows.
        vectors: float32 [A, D], one direction per attribute, in units of the latent space (not normalised).
        positives: Per attribute, how many images with it went into its direction.
        negatives: Per attribute, how many images without it went into its direction.
        split: Partition of the data set that the images came from, for example "train".

    Raises:
        DirectionsError: When the parts don't agree in length, or a vector isn't finite.
    """

    names: tuple[str, ...]
    vectors: Floats
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    split: str

    def __post_init__(self) -> None:
        count = len(self.names)
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise DirectionsError(
                f"directions must be float32 [attributes, latent_dim], not {self.vectors.dtype} "
                f"{list(self.vectors.shape)}"
            )
        if not len(self.vectors) == len(self.positives) == len(self.negatives) == count:
            raise DirectionsError(
                f"directions disagree: {count} names, {len(self.vectors)} vectors, "
                f"{len(self.positives)} positives, {len(self.negatives)} negatives"
            )
        if len(set(self.names)) != count:
            raise DirectionsError(f"attribute names repeat: {', '.join(self.names)}")
        if not np.isfinite(self.vectors).all():
            bad = self.names[int(np.argmin(np.isfinite(self.vectors).all(axis=1)))]
            raise DirectionsError(f"the direction of {bad!r} has values that are not finite")

    @property
    def latent_dim(self) -> int:
        """Dimension D of the latent space."""
        return int(self.vectors.shape[1])

    def __getitem__(self, name: str) -> Floats:
        """Direction of one attribute, float32 [D].

        Raises:
            UnknownAttribute: When this model has no direction of that name.
        """
        try:
            row = self.names.index(name)
        except ValueError:
            known = ", ".join(self.names) or "none at all"
            raise UnknownAttribute(f"unknown attribute {name!r}; this model has: {known}") from None
        vector: Floats = self.vectors[row]
        return vector

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file: tensor `directions` [A, D]; everything else in its metadata."""
        metadata = {
            "names": json.dumps(self.names),
            "positives": json.dumps(self.positives),
            "negatives": json.dumps(self.negatives),
            "split": self.split,
        }
        save_file({"directions": np.ascontiguousarray(self.vectors)}, path, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Directions":
        """Reads what `save` wrote.

        Raises:
            DirectionsError: When the file is missing, truncated, or not a directions file.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                return cls(
                    names=tuple(str(name) for name in json.loads(metadata["names"])),
                    vectors=file.get_tensor("directions"),
                    positives=tuple(int(count) for count in json.loads(metadata["positives"])),
                    negatives=tuple(int(count) for count in json.loads(metadata["negatives"])),
                    split=metadata["split"],
                )
        except FileNotFoundError:
            raise DirectionsError(f"{path} does not exist") from None
        except KeyError as error:
            raise DirectionsError(f"{path} is not a directions file: its metadata lacks {error}") from None
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise DirectionsError(f"{path} can't be read as a directions file: {error}") from error
        except DirectionsError as error:
            raise DirectionsError(f"{path}: {error}") from None


def edit(
    latents: Floats,
    moves: Sequence[tuple[Floats, float]],
    keep: Floats | None = None,
) -> Floats:
    """Moves latents along directions, leaving alone what is to be kept.

    Every move adds `strength * vector`; with a stored direction, strength 1 is the mean difference between
    having the attribute and not having it. With `keep`, only the part of the moves that is orthogonal to the
    span of all kept directions is applied (InterFaceGAN's conditional manipulation, arXiv 1907.10786).

    Args:
        latents: float32 [N, D].
        moves: Pairs of a direction, float32 [D], and its strength.
        keep: float32 [K, D], directions along which nothing may change; they may be linearly dependent.

    Returns:
        New latents, float32 [N, D].

    Raises:
        InvalidRequest: When the result doesn't fit float32 (a strength far beyond any use).
    """
    step = np.zeros(latents.shape[1], dtype=np.float64)
    for vector, strength in moves:
        step += float(strength) * vector.astype(np.float64)
    if keep is not None and len(keep):
        step = _without_span(step, keep.astype(np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (latents.astype(np.float64) + step).astype(np.float32)
    if not np.isfinite(moved).all():
        largest = max((abs(strength) for _, strength in moves), default=0.0)
        raise InvalidRequest(
            f"the edits move the latents out of float32's range (largest strength {largest:g}); "
            "use strengths of a few units"
        )
    return moved


def _without_span(step: npt.NDArray[np.float64], keep: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Part of `step` [D] that is orthogonal to every row of `keep` [K, D]."""
    lengths = np.linalg.norm(keep, axis=1, keepdims=True)
    units = keep / np.where(lengths > 0, lengths, 1.0)
    _, sizes, basis = np.linalg.svd(units, full_matrices=False)
    basis = basis[sizes > _SPAN_TOLERANCE * max(float(sizes[0]), 1.0)]
    return step - basis.T @ (basis @ step)
