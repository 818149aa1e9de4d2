"""Figures of a proof: how far engines are from a truth, how far they may be, and the report about it.

Shapes: R rows, each an image or a latent in some batch; D latent dimensions, S image size.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from engine.arrays import Bytes, Floats
from engine.errors import ParityError

LEAST_SPREAD = 0.1
"""Spread that values have at least: latents vary by about 1, and what differs less between images says hardly anything.

After a short training that is most of log_var, and much of mu.
"""
LEAST_SHARE = 1e-2
"""Likewise as a share of the largest value; float32 rounds by some 1e-5 of that."""
_LABELS = {
    "mu": "mu",
    "log_var": "log_var",
    "edit_mu": "mu of edit",
    "decode": "decode of mu",
    "random": "decode of N(0, I)",
    "sample": "decode of samples",
    "edit": "edit",
}


@dataclass(frozen=True)
class Tolerances:
    """How far engines may be from the truth."""

    latents: float  # largest error of a value of mu or log_var, as a share of their spread
    levels: int  # largest difference of a pixel's colour, 8-bit levels
    psnr_db: float  # smallest PSNR of any image, dB; 0 asks for none
    mean_levels: float  # largest mean difference of images, 8-bit levels
    bias_levels: float  # largest mean of the signed difference of images, 8-bit levels
    logits: float  # largest shift of a classifier's mean logit of edited images, as a share of what the edit shifts


TOLERANCES = {
    # Another order of the same float32 sums: 1e-5 to 1e-4 measured, and a level where a value lies at .5. The mean is
    # 80 dB where no pixel is off by more than a level; the worst image measured had 84 dB.
    "fp32": Tolerances(latents=2e-4, levels=1, psnr_db=75.0, mean_levels=6.5e-4, bias_levels=6.5e-4, logits=0.01),
    # Eight bits of every factor: 0.046 of the spread, 3 levels, 54 dB in the worst image, and signed means of 0.04
    # levels are the worst measured on networks trained on real faces; on one trained for a minute on procedural ones 8
    # levels, in single pixels at edges, 53 dB and 0.08 levels. A tenth of the spread is small beside an edit.
    "bf16": Tolerances(latents=0.1, levels=12, psnr_db=45.0, mean_levels=0.5, bias_levels=0.2, logits=0.2),
    # Three bits more than bf16 in every factor: 0.004 of the spread, 1 level, 65 dB in the worst image and signed means
    # of 0.007 levels, by ONNX Runtime's CPU, which adds up in float32. A GPU may not: with sums in FP16 it was 0.037.
    "fp16": Tolerances(latents=0.05, levels=4, psnr_db=50.0, mean_levels=0.2, bias_levels=0.1, logits=0.05),
    # 256 steps for the range of a whole tensor: 0.63 of the spread (log_var's; of mu's 0.19), 27 levels, 38 dB in the
    # worst image and signed means of 0.31 levels. The largest errors are those of single pixels at edges; 35 dB is just
    # visible beside the original, and whether edits still show is for the judge.
    "int8": Tolerances(latents=0.75, levels=48, psnr_db=35.0, mean_levels=2.5, bias_levels=0.45, logits=0.75),
}
"""Tolerances by precision, with what was measured.

What engines shift a classifier's logits by was measured on the seed's network with real faces, 80 edits of 40
attributes: at worst 0.0004 (fp32), 0.09 (bf16), 0.015 (fp16) and 0.52 (int8) of what the edit itself shifts.
"""
BIAS_SHARE = 2 / 3
"""Largest mean of the signed error of a latent dimension, as a share of the tolerance of single values."""


@dataclass(frozen=True)
class LatentError:
    """How far float32 [R, D] values are from the reference's.

    The spread is the standard deviation of the reference's values over the rows, per latent dimension, then the root
    mean square over the dimensions: those that carry nothing cannot shrink it to 0. At least `LEAST_SPREAD`, and
    `LEAST_SHARE` of the largest value.
    """

    max_abs: float  # largest absolute error
    mean_abs: float
    bias: float  # mean of the signed error of the dimension where it is farthest from 0
    spread: float
    max_relative: float  # as a share of the spread, and so are the next two
    mean_relative: float
    bias_relative: float
    worst: str  # which row has the largest error

    @classmethod
    def between(cls, values: Floats, reference: Floats, rows: Sequence[str] = ()) -> "LatentError":
        """Measures float32 [R, D] values against the reference's; `rows` are the R names, if they have any."""
        error = values.astype(np.float64) - reference
        worst = int(np.abs(error).max(axis=1).argmax())
        bias = float(np.abs(error.mean(axis=0)).max())
        largest, mean = float(np.abs(error).max()), float(np.abs(error).mean())
        deviation = math.sqrt(float(reference.astype(np.float64).var(axis=0).mean()))
        spread = max(deviation, LEAST_SPREAD, LEAST_SHARE * float(np.abs(reference).max()))
        name = rows[worst] if rows else f"row {worst}"
        return cls(largest, mean, bias, spread, largest / spread, mean / spread, bias / spread, worst=name)

    def beyond(self, tolerances: Tolerances) -> Iterator[str]:
        """What of it is beyond the tolerances, one clause each; NaN always is."""
        largest, bound = self.max_relative, tolerances.latents
        if not largest <= bound:
            yield f"is off by {largest:.2e} of its spread of {self.spread:.3g} in {self.worst} (tolerance {bound:.2e})"
        bias, bound = self.bias_relative, BIAS_SHARE * tolerances.latents
        if not bias <= bound:
            yield f"is off by {bias:.2e} of its spread in the mean of a dimension (tolerance {bound:.2e})"

    def cells(self, tolerances: Tolerances) -> list[str]:
        """Its row in a stage's table."""
        errors = [f"{self.max_abs:.2e}", f"{self.mean_abs:.2e}", f"{self.spread:.3g}", f"{self.max_relative:.2e}"]
        return [*errors, f"{tolerances.latents:.2e}", _verdict(self, tolerances)]


@dataclass(frozen=True)
class ImageError:
    """How far uint8 [R, S, S, 3] images are from the reference's."""

    max_levels: int  # largest difference of a pixel's colour, 8-bit levels
    mean_levels: float  # mean difference, 8-bit levels
    bias_levels: float  # mean of the signed difference, 8-bit levels
    psnr_db: float | None  # 10 log10(255^2 / mean squared difference) over all images; None when they are equal
    worst_psnr_db: float | None  # the same of the worst image alone
    worst: str  # which image that is

    @classmethod
    def between(cls, images: Bytes, reference: Bytes, rows: Sequence[str] = ()) -> "ImageError":
        """Measures uint8 [R, S, S, 3] images against the reference's; `rows` are the R names, if they have any."""
        difference = images.astype(np.int16) - reference
        pixels = (1, 2, 3)
        squares = np.square(difference, dtype=np.int32).mean(axis=pixels)
        worst = int(squares.argmax())
        return cls(
            max_levels=int(np.abs(difference).max()),
            mean_levels=float(np.abs(difference).mean()),
            bias_levels=float(difference.mean()),
            psnr_db=_psnr(float(squares.mean())),
            worst_psnr_db=_psnr(float(squares[worst])),
            worst=rows[worst] if rows else f"row {worst}",
        )

    def beyond(self, tolerances: Tolerances) -> Iterator[str]:
        """What of it is beyond the tolerances, one clause each."""
        worst, off, bounds = self.worst_psnr_db, abs(self.bias_levels), tolerances
        if self.max_levels > bounds.levels:
            yield f"is off by up to {self.max_levels} of 255 levels (tolerance {bounds.levels})"
        if worst is not None and worst < bounds.psnr_db:
            yield f"has {worst:.1f} dB PSNR in {self.worst} (tolerance {bounds.psnr_db:g})"
        if self.mean_levels > bounds.mean_levels:
            yield f"is off by {self.mean_levels:.2g} levels in the mean (tolerance {bounds.mean_levels:g})"
        if off > bounds.bias_levels:
            side = "bright" if self.bias_levels > 0 else "dark"
            yield f"is {off:.2g} levels too {side} in the mean (tolerance {bounds.bias_levels:g})"

    def cells(self, tolerances: Tolerances) -> list[str]:
        """Its row in a stage's table."""
        levels = [f"{self.max_levels}", f"{self.mean_levels:.2e}", f"{self.bias_levels:+.2e}"]
        return [*levels, _decibels(self.psnr_db), _decibels(self.worst_psnr_db), _verdict(self, tolerances)]


@dataclass(frozen=True)
class Judgement:
    """Edited images in the eyes of a classifier, beside the reference's, by edit: "Smiling +0.5"."""

    # Shift of the mean logit of the attribute where it is largest, as a share of what the edit itself shifts the mean
    # logit of its own attribute; and which attribute that is.
    shares: dict[str, float]
    attributes: dict[str, str]

    @property
    def worst(self) -> str:
        """The edit with the largest share."""
        return max(self.shares, key=lambda edit: self.shares[edit])

    def beyond(self, tolerances: Tolerances) -> Iterator[str]:
        """What of it is beyond the tolerance, in a clause; NaN always is."""
        edit, share, bound = self.worst, self.shares[self.worst], tolerances.logits
        if not share <= bound:
            yield (
                f"edit {edit} moves the classifier's mean logit of {self.attributes[edit]} by {share:.3g} of the "
                f"edit's own shift away (tolerance {bound:g})"
            )


@dataclass(frozen=True)
class Stage:
    """How far one kind of engine is from the truth."""

    what: str  # that ran, for a person
    tolerances: Tolerances
    latents: dict[str, LatentError]  # of `mu`, `log_var`, and `edit_mu`, the mu that edits give
    images: dict[str, ImageError]  # of `decode`, `random`, `sample` and `edit`
    judged: Judgement | None = None  # edits in the eyes of a classifier; None without one

    def failures(self) -> list[str]:
        """One clause per figure beyond its tolerance, with both; empty when all hold."""
        errors: dict[str, LatentError | ImageError] = {**self.latents, **self.images}
        bounds = self.tolerances
        found = [f"{_LABELS[name]} {clause}" for name, error in errors.items() for clause in error.beyond(bounds)]
        return [*found, *self.judged.beyond(bounds)] if self.judged else found

    def require(self, name: str, truth: str) -> None:
        """Lets a stage of that name pass that is within its tolerances.

        Raises:
            ParityError: it is not; names every figure that is beyond, and `truth`.
        """
        if failures := self.failures():
            raise ParityError(f"stage {name} ({self.what}) differs from {truth}: {'; '.join(failures)}")

    def table(self, name: str) -> str:
        """The stage as text for a screen."""
        bounds = self.tolerances
        lines = [
            f"stage {name}: {self.what}",
            _row("", "max error", "mean error", "spread", "max/spread", "tolerance"),
        ]
        lines += [_row(_LABELS[result], *error.cells(bounds)) for result, error in self.latents.items()]
        lines.append(_row("levels", "max", "mean", "signed mean", "PSNR", "worst image"))
        lines += [_row(_LABELS[result], *error.cells(bounds)) for result, error in self.images.items()]
        asked = (f"{bounds.levels}", f"{bounds.mean_levels:.2e}", f"{bounds.bias_levels:.2e}", "")
        lines.append(_row("tolerance", *asked, f"{bounds.psnr_db:g} dB"))
        if judged := self.judged:
            lines.append(_row("edits by judge", "edits", "worst", "tolerance"))
            figures = (f"{len(judged.shares)}", f"{judged.shares[judged.worst]:.2e}", f"{bounds.logits:.2e}")
            lines.append(_row(judged.worst, *figures, "", "", _verdict(judged, bounds)))
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What was measured, stage by stage."""

    truth: str  # what everything was measured against
    samples: int  # images
    judge: str  # who judged edits, or why nobody did
    # In the order of the build: `portable`, `rewritten` (where there are rewrites), `reduced` (where the precision is
    # in the graph), `engine`, and `proof`, the engine on the bundle's own proof.
    stages: dict[str, Stage]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types, as the manifest's `parity` holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Report":
        """The inverse of `to_json`; ValueError when a part or figure is missing or wrong."""
        return TypeAdapter(cls).validate_python(values)

    def table(self) -> str:
        """The report as text for a screen."""
        lines = [f"parity with {self.truth}, {self.samples} images", f"edits judged: {self.judge}"]
        return "\n".join([*lines, *(stage.table(name) for name, stage in self.stages.items())])


def _psnr(mean_square: float) -> float | None:
    return 10 * math.log10(255**2 / mean_square) if mean_square else None


def _decibels(psnr: float | None) -> str:
    return "equal" if psnr is None else f"{psnr:.1f} dB"


def _row(label: str, *cells: str) -> str:
    return f"  {label:<26}{''.join(f'{cell:>13}' for cell in cells)}".rstrip()


def _verdict(figures: LatentError | ImageError | Judgement, tolerances: Tolerances) -> str:
    return "FAIL" if any(figures.beyond(tolerances)) else "ok"
