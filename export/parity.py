"""The parity gate: engines against PyTorch eager FP32, on real images and on random latents.

Five stages are measured. `mu` and `log_var`: encoding the images. `decode`: decoding the reference's mu of
the images. `random`: decoding latents from N(0, I). `edit`: encoding, moving each image by strength 1 along
one direction (the directions in turn) and decoding, each side from its own mu.

Shapes: N images, D latent dimensions, S image size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from engine.backends import Backend
from engine.latents import Directions, edit
from export.errors import ParityError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Batch = TypeVar("Batch", Bytes, Floats)

_LABELS = {"decode": "decode of mu", "random": "decode of N(0, I)", "edit": "edit"}


@dataclass(frozen=True)
class Tolerances:
    """How far engines may be from PyTorch.

    Attributes:
        latents: Largest error of mu and of log_var, as a share of their spread.
        levels: Largest difference of a pixel's colour, 8-bit levels.
    """

    latents: float = 1e-4
    levels: int = 1


@dataclass(frozen=True)
class LatentError:
    """How far float32 [N, D] values are from the reference's.

    Attributes:
        max_abs: Largest absolute error.
        mean_abs: Mean absolute error.
        spread: Standard deviation of the reference's values over the images, per latent dimension, then the
            root mean square over the dimensions: those that carry nothing cannot shrink it to 0.
        max_relative: `max_abs / spread`.
    """

    max_abs: float
    mean_abs: float
    spread: float
    max_relative: float

    @classmethod
    def between(cls, values: Floats, reference: Floats) -> LatentError:
        """Measures float32 [N, D] values against the reference's."""
        error = np.abs(values.astype(np.float64) - reference)
        max_abs = float(error.max())
        spread = math.sqrt(float(reference.astype(np.float64).var(axis=0).mean()))
        relative = max_abs / spread if spread else (math.inf if max_abs else 0.0)
        return cls(max_abs, float(error.mean()), spread, relative)


@dataclass(frozen=True)
class ImageError:
    """How far uint8 [N, S, S, 3] images are from the reference's.

    Attributes:
        max_levels: Largest difference of a pixel's colour, 8-bit levels.
        mean_levels: Mean difference, 8-bit levels.
        psnr_db: 10 log10(255^2 / mean squared difference) over all images; None when they are equal.
    """

    max_levels: int
    mean_levels: float
    psnr_db: float | None

    @classmethod
    def between(cls, images: Bytes, reference: Bytes) -> ImageError:
        """Measures uint8 [N, S, S, 3] images against the reference's."""
        difference = np.abs(images.astype(np.int16) - reference)
        mean_square = float(np.square(difference, dtype=np.float64).mean())
        psnr = 10 * math.log10(255**2 / mean_square) if mean_square else None
        return cls(int(difference.max()), float(difference.mean()), psnr)


@dataclass(frozen=True)
class Report:
    """What the gate measured.

    Attributes:
        samples: Number N of real images; as many random latents were decoded.
        tolerances: What the figures are held against.
        latents: Errors of the stages `mu` and `log_var`.
        images: Errors of the stages `decode`, `random` and `edit`.
    """

    samples: int
    tolerances: Tolerances
    latents: dict[str, LatentError]
    images: dict[str, ImageError]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types, as the manifest's `parity` holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Report:
        """The inverse of `to_json`.

        Raises:
            KeyError: a part is missing.
            TypeError: a figure is missing or unknown.
        """
        return cls(
            samples=values["samples"],
            tolerances=Tolerances(**values["tolerances"]),
            latents={stage: LatentError(**error) for stage, error in values["latents"].items()},
            images={stage: ImageError(**error) for stage, error in values["images"].items()},
        )

    def failures(self) -> list[str]:
        """One clause per stage beyond its tolerance, with figure and tolerance; empty when all hold."""
        share, levels = self.tolerances.latents, self.tolerances.levels
        found = []
        for stage, error in self.latents.items():
            if not error.max_relative <= share:  # so that NaN fails
                figure = f"{error.max_relative:.2e} of its spread of {error.spread:.3g}"
                found.append(f"{stage} is off by {figure} (tolerance {share:.2e})")
        for stage, difference in self.images.items():
            if difference.max_levels > levels:
                figure = f"up to {difference.max_levels} of 255 levels"
                found.append(f"{_LABELS[stage]} is off by {figure} (tolerance {levels})")
        return found

    def require(self) -> None:
        """Lets engines within the tolerances pass.

        Raises:
            ParityError: names every stage that is beyond its tolerance.
        """
        if failures := self.failures():
            raise ParityError(f"the engines differ from PyTorch: {'; '.join(failures)}")

    def table(self) -> str:
        """The report as text for a screen."""
        share, levels = self.tolerances.latents, self.tolerances.levels
        lines = [
            f"parity with PyTorch eager FP32, {self.samples} held-out images and as many random latents",
            _row("", "max error", "mean error", "spread", "max/spread", "tolerance"),
        ]
        for stage, error in self.latents.items():
            figures = (f"{error.max_abs:.2e}", f"{error.mean_abs:.2e}", f"{error.spread:.3g}")
            verdict = _verdict(error.max_relative <= share)
            lines.append(_row(stage, *figures, f"{error.max_relative:.2e}", f"{share:.2e}", verdict))
        lines.append(_row("", "max levels", "mean levels", "PSNR", "", "tolerance"))
        for stage, difference in self.images.items():
            psnr = "equal" if difference.psnr_db is None else f"{difference.psnr_db:.1f} dB"
            figures = (f"{difference.max_levels}", f"{difference.mean_levels:.2e}", psnr)
            verdict = _verdict(difference.max_levels <= levels)
            lines.append(_row(_LABELS[stage], *figures, "", f"{levels}", verdict))
        return "\n".join(lines)


def compare(
    engine: Backend,
    reference: Backend,
    images: Bytes,
    directions: Directions,
    *,
    batch_size: int,
    tolerances: Tolerances,
    seed: int = 0,
) -> Report:
    """Runs the five stages on both sides.

    Args:
        engine: What is measured.
        reference: What it is measured against.
        images: uint8 [N, S, S, 3], N at least 2.
        directions: Directions of the edits; without any, the stage `edit` only reconstructs.
        batch_size: Largest batch that either side is given.
        tolerances: Kept in the report, for its verdict.
        seed: Seed of the random latents.

    Raises:
        ParityError: one side's latents are not finite, so that there is nothing to measure.
    """
    noise = np.random.default_rng(seed).standard_normal((len(images), directions.latent_dim), dtype=np.float32)
    true_mu, true_log_var = _encode(reference, images, batch_size)
    _require_finite("PyTorch's own", true_mu, "the training has diverged: train again with a smaller --lr")
    mu, log_var = _encode(engine, images, batch_size)
    _require_finite("the engine's", mu, "PyTorch's is: the engine is broken")
    pairs = {
        "decode": (true_mu, true_mu),
        "random": (noise, noise),
        "edit": (_moved(mu, directions), _moved(true_mu, directions)),
    }
    return Report(
        samples=len(images),
        tolerances=tolerances,
        latents={
            "mu": LatentError.between(mu, true_mu),
            "log_var": LatentError.between(log_var, true_log_var),
        },
        images={
            stage: ImageError.between(
                _decode(engine, latents, batch_size), _decode(reference, true_latents, batch_size)
            )
            for stage, (latents, true_latents) in pairs.items()
        },
    )


def _moved(latents: Floats, directions: Directions) -> Floats:
    moved = latents.copy()
    count = len(directions.names)
    for row, vector in enumerate(directions.vectors):
        moved[row::count] = edit(latents[row::count], [(vector, 1.0)])
    return moved


def _encode(backend: Backend, images: Bytes, batch_size: int) -> tuple[Floats, Floats]:
    mu, log_var = zip(*map(backend.encode, _batches(images, batch_size)), strict=True)
    return np.concatenate(mu), np.concatenate(log_var)


def _decode(backend: Backend, latents: Floats, batch_size: int) -> Bytes:
    return np.concatenate([backend.decode(batch) for batch in _batches(latents, batch_size)])


def _batches(values: Batch, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(values), batch_size):
        yield values[start : start + batch_size]


def _require_finite(whose: str, mu: Floats, mend: str) -> None:
    if not np.isfinite(mu).all():
        raise ParityError(f"{whose} mu of the held-out images has values that are not finite; {mend}")


def _row(label: str, *cells: str) -> str:
    return f"  {label:<18}{''.join(f'{cell:>13}' for cell in cells)}".rstrip()


def _verdict(holds: bool) -> str:
    return "ok" if holds else "FAIL"
