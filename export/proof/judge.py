"""Edits as an image classifier sees them: does an engine's edit show what PyTorch's shows?

Pixels may differ a little everywhere without anybody noticing, or in the one place that makes a smile. So the run's
own classifier, which `trainer evaluate` trained on the images of the train split, looks at edited images of both. Its
logits are compared, not its verdicts: small edits of every attribute that it knows, to both sides, shift the mean logit
of their own attribute; what an engine shifts the mean logit of any attribute besides is held against that.

Shapes: N images, A attributes, S image size, D latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.backends import Backend, Bytes, Floats
from engine.backends.base import in_parts
from engine.latents import Directions
from engine.proof.figures import Judgement

STRENGTH = 0.5
"""Size of the edits: large enough to be seen, and too small for a classifier to be as sure of them as it ever is."""
IMAGES = 16
"""Images that each edit is made to, at most: differences between the same images need few."""
LEAST_SHIFT = 0.5
"""Least logit that an edit is taken to shift: some do next to nothing, which isn't the engine's fault."""
NO_RUN = "skipped: it takes the run's classifier; give --run"


@dataclass(frozen=True)
class Judge:
    """A classifier of attributes."""

    what: str  # which one, for reports
    attributes: Sequence[str]  # what it knows
    logits: Callable[[Bytes], Floats]  # of images, uint8 [N, S, S, 3]: float32 [N, A], above 0 where it sees one


def describe(trial: Trial | str) -> str:
    """Who judges which edits, or why nobody does."""
    return trial if isinstance(trial, str) else trial.what


class Trial:
    """Edits to be judged, and what the judge sees in the reference's.

    Args:
        judge: The judge.
        reference: The reference.
        images: uint8 [N, S, S, 3]; the first `IMAGES` of them are edited.
        directions: Directions of the edits, at least one of an attribute that the judge can tell.
    """

    def __init__(self, judge: Judge, reference: Backend, images: Bytes, directions: Directions) -> None:
        self._judge = judge
        self._images = images[:IMAGES]
        names = [name for name in directions.names if name in judge.attributes]
        self._steps = {
            f"{name} {sign * STRENGTH:+g}": (name, np.float32(sign * STRENGTH) * directions[name])
            for name in names
            for sign in (1, -1)
        }
        plain = self._logits(reference, np.zeros(directions.latent_dim, np.float32), len(self._images))
        self._seen: dict[str, npt.NDArray[np.float64]] = {}
        self._shifts: dict[str, float] = {}
        for move, (name, step) in self._steps.items():
            self._seen[move] = self._logits(reference, step, len(self._images))
            own = list(judge.attributes).index(name)
            self._shifts[move] = max(abs(float(self._seen[move][own] - plain[own])), LEAST_SHIFT)
        self.what = f"{len(self._steps)} edits, {STRENGTH:g} to both sides, by {judge.what}"

    @classmethod
    def of(cls, judge: Judge | str, reference: Backend, images: Bytes, directions: Directions) -> Trial | str:
        """A trial, or why there is none."""
        if isinstance(judge, str):
            return judge
        if not set(judge.attributes) & set(directions.names):
            return "skipped: the run has no directions of attributes that its classifier knows"
        return cls(judge, reference, images, directions)

    def judge(self, engine: Backend, max_batch: int) -> Judgement:
        """Compares an engine's edits, made in batches of at most `max_batch`, with the reference's."""
        shares, attributes = {}, {}
        for move, (_, step) in self._steps.items():
            away = np.abs(self._logits(engine, step, max_batch) - self._seen[move])
            shares[move] = float(away.max()) / self._shifts[move]
            attributes[move] = self._judge.attributes[int(away.argmax())]
        return Judgement(shares, attributes)

    def _logits(self, backend: Backend, step: Floats, batch_size: int) -> npt.NDArray[np.float64]:
        """Mean logits of the images, moved by a step float32 [D]: [A]."""
        edited, _ = in_parts(backend.edit, batch_size, self._images, np.tile(step, (len(self._images), 1)))
        means: npt.NDArray[np.float64] = self._judge.logits(edited).astype(np.float64).mean(axis=0)
        return means
