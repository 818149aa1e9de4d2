"""Parity figures: how far engines are from a truth, how far they may be, and the report about it.

Shapes: N images, D latent dimensions, S image size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.errors import ParityError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Seen = npt.NDArray[np.bool_]

UNJUDGED = "skipped: the bundle was built before edits were judged"
LEAST_SPREAD = 1e-2
"""Spread that values have at least, as a share of the largest; float32 rounds by some 1e-5 of that."""
_LABELS = {"decode": "decode of mu", "random": "decode of N(0, I)", "edit": "edit"}


@dataclass(frozen=True)
class Tolerances:
    """How far engines may be from the truth.

    Attributes:
        latents: Largest error of mu and of log_var, as a share of their spread.
        levels: Largest difference of a pixel's colour, 8-bit levels.
        psnr_db: Smallest PSNR of images, dB; 0 asks for none.
        judged: Smallest share of edits in which a classifier sees what it sees in the truth's.
    """

    latents: float
    levels: int
    psnr_db: float
    judged: float = 0.99


TOLERANCES = {
    # Another order of the same float32 sums: 1e-5 to 5e-5 measured, and a level where a value lies at .5.
    "fp32": Tolerances(latents=1e-4, levels=1, psnr_db=0.0),
    # Eight bits of every factor: 0.034 of the spread, 3 levels and 55.5 dB are the worst measured on three networks
    # trained on real faces. A tenth of the spread is a tenth of an edit of strength 1; 45 dB is invisible.
    "bf16": Tolerances(latents=0.1, levels=4, psnr_db=45.0),
    # Three bits more than bf16 in every factor: 0.004 of the spread, 1 level and 66 dB are the worst measured on two
    # networks, by ONNX Runtime's CPU, which adds up in float32. A GPU may not: with sums in FP16 it was 0.037.
    "fp16": Tolerances(latents=0.05, levels=4, psnr_db=45.0),
    # 256 steps for the range of a whole tensor: 0.51 of the spread (log_var's; of mu's 0.19), 27 levels and 38.7 dB are
    # the worst measured on two networks. The largest errors are those of single pixels at edges; 35 dB is just visible
    # beside the original, and whether edits still show is for the judge.
    "int8": Tolerances(latents=0.75, levels=48, psnr_db=35.0),
}
"""Tolerances by precision, with what was measured. In all of them 99 % of the edits must be judged alike."""


@dataclass(frozen=True)
class LatentError:
    """How far float32 [N, D] values are from the reference's.

    Attributes:
        max_abs: Largest absolute error.
        mean_abs: Mean absolute error.
        spread: Standard deviation of the reference's values over the images, per latent dimension, then the
            root mean square over the dimensions: those that carry nothing cannot shrink it to 0. At least
            `LEAST_SPREAD` of the largest value, as after a short training log_var hardly differs between images.
        max_relative: `max_abs / spread`.
        mean_relative: `mean_abs / spread`.
    """

    max_abs: float
    mean_abs: float
    spread: float
    max_relative: float
    mean_relative: float

    @classmethod
    def between(cls, values: Floats, reference: Floats) -> LatentError:
        """Measures float32 [N, D] values against the reference's."""
        error = np.abs(values.astype(np.float64) - reference)
        max_abs, mean_abs = float(error.max()), float(error.mean())
        deviation = math.sqrt(float(reference.astype(np.float64).var(axis=0).mean()))
        spread = max(deviation, LEAST_SPREAD * float(np.abs(reference).max()))
        relative = [value / spread if spread else (math.inf if value else 0.0) for value in (max_abs, mean_abs)]
        return cls(max_abs, mean_abs, spread, *relative)


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
class Agreement:
    """How many edits a classifier sees as it sees the reference's.

    Attributes:
        cases: Number of edited images.
        alike: How many of them have the edited attribute in its eyes, or have it not, like the reference's.
        by_edit: Share of them by edit, "Smiling +1.5".
    """

    cases: int
    alike: int
    by_edit: dict[str, float]

    @property
    def share(self) -> float:
        """Share of the cases that are seen alike."""
        return self.alike / self.cases

    @classmethod
    def between(cls, seen: dict[str, Seen], reference: dict[str, Seen]) -> Agreement:
        """Compares what was seen, bool [N] by edit, with the reference's."""
        same = {edit: values == reference[edit] for edit, values in seen.items()}
        cases = sum(len(values) for values in same.values())
        alike = sum(int(values.sum()) for values in same.values())
        return cls(cases, alike, {edit: float(values.mean()) for edit, values in same.items()})


@dataclass(frozen=True)
class Stage:
    """What the gate measured of one stage of a build.

    Attributes:
        what: What was run: graphs, backend and precision.
        tolerances: What the figures are held against.
        latents: Errors of `mu` and `log_var`.
        images: Errors of `decode`, `random` and `edit`.
        judged: What became of edits in the eyes of a classifier; None without one.
    """

    what: str
    tolerances: Tolerances
    latents: dict[str, LatentError]
    images: dict[str, ImageError]
    judged: Agreement | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Stage:
        """The inverse of `dataclasses.asdict`."""
        return cls(
            what=values["what"],
            tolerances=Tolerances(**values["tolerances"]),
            latents={name: LatentError(**error) for name, error in values["latents"].items()},
            images={name: ImageError(**error) for name, error in values["images"].items()},
            judged=Agreement(**judged) if (judged := values.get("judged")) else None,
        )

    def failures(self) -> list[str]:
        """One clause per result beyond its tolerance, with figure and tolerance; empty when all hold."""
        share = self.tolerances.latents
        found = []
        for name, error in self.latents.items():
            if not error.max_relative <= share:  # so that NaN fails
                figure = f"{error.max_relative:.2e} of its spread of {error.spread:.3g}"
                found.append(f"{name} is off by {figure} (tolerance {share:.2e})")
        for name, difference in self.images.items():
            found += [f"{_LABELS[name]} {clause}" for clause in _beyond(difference, self.tolerances)]
        if self.judged is not None and self.judged.share < self.tolerances.judged:
            found.append(
                f"{self.judged.cases - self.judged.alike} of {self.judged.cases} edits are judged differently "
                f"({self.judged.share:.2%} alike, tolerance {self.tolerances.judged:.2%})"
            )
        return found

    def table(self, name: str) -> str:
        """The stage as text for a screen."""
        bounds = self.tolerances
        lines = [
            f"stage {name}: {self.what}",
            _row("", "max error", "mean error", "spread", "max/spread", "tolerance"),
        ]
        for result, error in self.latents.items():
            figures = (f"{error.max_abs:.2e}", f"{error.mean_abs:.2e}", f"{error.spread:.3g}")
            verdict = _verdict(error.max_relative <= bounds.latents)
            lines.append(_row(result, *figures, f"{error.max_relative:.2e}", f"{bounds.latents:.2e}", verdict))
        lines.append(_row("", "max levels", "mean levels", "PSNR", "", "tolerance"))
        for result, difference in self.images.items():
            psnr = "equal" if difference.psnr_db is None else f"{difference.psnr_db:.1f} dB"
            figures = (f"{difference.max_levels}", f"{difference.mean_levels:.2e}", psnr)
            asked = f"{bounds.levels}" + (f", {bounds.psnr_db:g} dB" if bounds.psnr_db else "")
            verdict = _verdict(not _beyond(difference, bounds))
            lines.append(_row(_LABELS[result], *figures, "", asked, verdict))
        if self.judged is not None:
            lines.append(_row("", "judged", "alike", "share", "", "tolerance"))
            figures = (f"{self.judged.cases}", f"{self.judged.alike}", f"{self.judged.share:.2%}")
            verdict = _verdict(self.judged.share >= bounds.judged)
            lines.append(_row("edits by judge", *figures, "", f"{bounds.judged:.2%}", verdict))
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What the gate measured, stage by stage.

    Attributes:
        truth: What everything was measured against.
        samples: Number N of images; as many random latents were decoded.
        judge: Who judged edits, or why nobody did.
        stages: By name, in the order of the build: `portable`, `rewritten` (where there are rewrites), `reduced` (where
            the precision is in the graph), `engine`.
    """

    truth: str
    samples: int
    judge: str
    stages: dict[str, Stage]

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
        stages = {name: Stage.from_json(stage) for name, stage in values["stages"].items()}
        return cls(values["truth"], values["samples"], values.get("judge", UNJUDGED), stages)

    def failures(self) -> list[str]:
        """The failures of the first stage that has any."""
        return next((found for stage in self.stages.values() if (found := stage.failures())), [])

    def require(self) -> None:
        """Lets engines within the tolerances pass.

        Raises:
            ParityError: names the first stage beyond its tolerances, and every result that is.
        """
        for name, stage in self.stages.items():
            if failures := stage.failures():
                raise ParityError(f"stage {name} ({stage.what}) differs from {self.truth}: {'; '.join(failures)}")

    def table(self) -> str:
        """The report as text for a screen."""
        lines = [
            f"parity with {self.truth}, {self.samples} images and as many random latents",
            f"edits judged: {self.judge}",
        ]
        return "\n".join([*lines, *(stage.table(name) for name, stage in self.stages.items())])


def _beyond(difference: ImageError, tolerances: Tolerances) -> list[str]:
    """What of an image error is beyond the tolerances, one clause each."""
    levels, least = tolerances.levels, tolerances.psnr_db
    found = []
    if difference.max_levels > levels:
        found.append(f"is off by up to {difference.max_levels} of 255 levels (tolerance {levels})")
    if difference.psnr_db is not None and difference.psnr_db < least:
        found.append(f"has {difference.psnr_db:.1f} dB PSNR (tolerance {least:g})")
    return found


def _row(label: str, *cells: str) -> str:
    return f"  {label:<18}{''.join(f'{cell:>13}' for cell in cells)}".rstrip()


def _verdict(holds: bool) -> str:
    return "ok" if holds else "FAIL"
