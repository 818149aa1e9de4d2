"""Edits as an image classifier sees them: does an engine's edit show what PyTorch's shows?

Pixels may differ a little everywhere without anybody noticing, or in the one place that makes a smile. So the run's
own classifier, which `trainer evaluate` trained on the images of the train split, looks at edited images of both. Its
logits are compared, not its verdicts: small edits of every attribute that it knows, to both sides, shift the mean logit
of their own attribute; what an engine shifts the mean logit of any attribute besides is held against that.

Shapes: N images, A attributes, S image size, D latent dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from engine.arrays import Bytes, Doubles, Floats
from engine.backends import Backend
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


def describe(trial: "Trial | str") -> str:
    """Who judges which edits, or why nobody does."""
    return trial if isinstance(trial, str) else trial.what


class Trial:
    """Edits to be judged, and what the judge sees in the reference's.

    The first `IMAGES` of the images, uint8 [N, S, S, 3], are edited along directions, at least one of which is of an
    attribute that the judge can tell.
    """

    def __init__(self, judge: Judge, reference: Backend, images: Bytes, directions: Directions) -> None:
        self._judge, self._images = judge, images[:IMAGES]
        count = len(self._images)
        plain = self._logits(reference, np.zeros(directions.latent_dim, np.float32), count)
        # By edit: its step, what the judge sees in the reference's, and what that shifts the logit of its attribute by.
        self._edits: dict[str, tuple[Floats, Doubles, float]] = {}
        for name, sign in product(directions.names, (1, -1)):
            if name in judge.attributes:
                step = np.float32(sign * STRENGTH) * directions[name]
                seen, own = self._logits(reference, step, count), list(judge.attributes).index(name)
                shift = max(abs(float(seen[own] - plain[own])), LEAST_SHIFT)
                self._edits[f"{name} {sign * STRENGTH:+g}"] = step, seen, shift
        self.what = f"{len(self._edits)} edits, {STRENGTH:g} to both sides, by {judge.what}"

    @classmethod
    def of(cls, judge: Judge | str, reference: Backend, images: Bytes, directions: Directions) -> "Trial | str":
        """A trial, or why there is none."""
        if isinstance(judge, str):
            return judge
        if not set(judge.attributes) & set(directions.names):
            return "skipped: the run has no directions of attributes that its classifier knows"
        return cls(judge, reference, images, directions)

    def judge(self, engine: Backend, max_batch: int) -> Judgement:
        """Compares an engine's edits, made in batches of at most `max_batch`, with the reference's."""
        shares, attributes = {}, {}
        for edit, (step, seen, shift) in self._edits.items():
            away = np.abs(self._logits(engine, step, max_batch) - seen)
            shares[edit] = float(away.max()) / shift
            attributes[edit] = self._judge.attributes[int(away.argmax())]
        return Judgement(shares, attributes)

    def _logits(self, backend: Backend, step: Floats, batch_size: int) -> Doubles:
        """Mean logits of the images, moved by a step float32 [D]: [A]."""
        edited, _ = in_parts(backend.edit, batch_size, self._images, np.tile(step, (len(self._images), 1)))
        means: Doubles = self._judge.logits(edited).astype(np.float64).mean(axis=0)
        return means
