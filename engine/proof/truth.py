"""The truth that engines are held against, on real images and on random latents.

Five results are compared. `mu` and `log_var`: encoding the images. `decode`: decoding the truth's mu of the
images. `random`: decoding latents from N(0, I). `edit`: encoding, moving each image by strength 1 along one
direction (the directions in turn) and decoding, each side from its own mu. Where there is a judge, `judged` besides:
every image moved by the edits of `export.judgement`, and what the judge sees then.

Shapes: N images, D latent dimensions, S image size.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from typing import TypeVar

import numpy as np

from engine.backends import Backend, Bytes, Floats, edit
from engine.latents import Directions
from export.errors import ParityError
from export.judgement import NO_RUN, Edit, Judge, edits_for
from export.parity import Agreement, ImageError, LatentError, Seen, Stage, Tolerances

Batch = TypeVar("Batch", Bytes, Floats)


class Truth:
    """What engines are held against: a reference's results, computed once.

    Args:
        what: Name of the reference, for reports.
        reference: The reference.
        images: uint8 [N, S, S, 3], N at least 2.
        directions: Directions of the edits; without any, `edit` only reconstructs.
        batch_size: Largest batch that either side is given.
        judge: Judge of edits, or why there is none.

    Raises:
        ParityError: the reference's latents are not finite, so that there is nothing to measure against.
    """

    def __init__(
        self,
        what: str,
        reference: Backend,
        images: Bytes,
        directions: Directions,
        *,
        batch_size: int,
        judge: Judge | str = NO_RUN,
    ) -> None:
        self.what = what
        self.reference = reference
        self.images = images
        self._directions = directions
        self._batch_size = batch_size
        noise = np.random.default_rng(0).standard_normal((len(images), directions.latent_dim), dtype=np.float32)
        self._mu, self._log_var = _encode(reference, images, batch_size)
        _require_finite(f"{what}'s own", self._mu, "the training has diverged: train again with a smaller --lr")
        self._latents = {"decode": self._mu, "random": noise}
        self._decoded = {
            "decode": _decode(reference, self._mu, batch_size),
            "random": _decode(reference, noise, batch_size),
            "edit": _decode(reference, self._mu + _steps(directions, len(images)), batch_size),
        }
        self._judge = judge
        self._edits: list[Edit] = []
        if not isinstance(judge, str):
            self._edits = edits_for(judge.attributes, directions.names)
            if not self._edits:
                self._judge = "skipped: the run has no directions of attributes that its classifier knows"
        self._seen = self._judged(reference)

    @property
    def judge(self) -> str:
        """Who judges edits and which, or why nobody does."""
        if isinstance(self._judge, str):
            return self._judge
        return f"{', '.join(map(str, self._edits))} by {self._judge.what}"

    def compare(self, engine: Backend, what: str, tolerances: Tolerances) -> Stage:
        """Measures an engine; `what` it is and the `tolerances` are kept for the verdict.

        Raises:
            ParityError: its mu is not finite.
        """
        mu, log_var = _encode(engine, self.images, self._batch_size)
        _require_finite(f"the {what}'s", mu, f"{self.what}'s is: the engine is broken")
        decoded = {name: _decode(engine, values, self._batch_size) for name, values in self._latents.items()}
        decoded["edit"] = _edit(engine, self.images, _steps(self._directions, len(self.images)), self._batch_size)
        return Stage(
            what=what,
            tolerances=tolerances,
            latents={
                "mu": LatentError.between(mu, self._mu),
                "log_var": LatentError.between(log_var, self._log_var),
            },
            images={name: ImageError.between(images, self._decoded[name]) for name, images in decoded.items()},
            judged=Agreement.between(self._judged(engine), self._seen) if self._seen else None,
        )

    def _judged(self, backend: Backend) -> dict[str, Seen]:
        """What the judge sees of each edit, bool [N], by edit; nothing without a judge."""
        if isinstance(self._judge, str):
            return {}
        seen = {}
        for move in self._edits:
            step = np.float32(move.strength) * self._directions[move.attribute]
            steps = np.tile(step, (len(self.images), 1))
            edited = _edit(backend, self.images, steps, self._batch_size)
            seen[str(move)] = self._judge.sees(edited, move.attribute)
        return seen


def _steps(directions: Directions, count: int) -> Floats:
    """One direction per image, in turn, float32 [N, D]; no movement where there are none."""
    if not directions.names:
        return np.zeros((count, directions.latent_dim), np.float32)
    return np.resize(directions.vectors, (count, directions.latent_dim))


def _edit(backend: Backend, images: Bytes, steps: Floats, batch_size: int) -> Bytes:
    batches = zip(_batches(images, batch_size), _batches(steps, batch_size), strict=True)
    return np.concatenate([edit(backend, *batch)[0] for batch in batches])


def _encode(backend: Backend, images: Bytes, batch_size: int) -> tuple[Floats, Floats]:
    mu, log_var = zip(*map(backend.encode, _batches(images, batch_size)), strict=True)
    return np.concatenate(mu), np.concatenate(log_var)


def _decode(backend: Backend, latents: Floats, batch_size: int) -> Bytes:
    return np.concatenate([backend.decode(batch) for batch in _batches(latents, batch_size)])


def _batches(values: Batch, batch_size: int) -> Iterator[Batch]:
    """One image, then two, then full batches: an engine may compute each of these in its own way."""
    start = 0
    for size in chain((1, 2), repeat(batch_size)):
        if start >= len(values):
            return
        batch = values[start : start + min(size, batch_size)]
        start += len(batch)
        yield batch


def _require_finite(whose: str, mu: Floats, mend: str) -> None:
    if not np.isfinite(mu).all():
        raise ParityError(f"{whose} mu of the held-out images has values that are not finite; {mend}")
