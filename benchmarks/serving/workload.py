"""Requests of every kind and size, drawn at random, each with its right answer: what the same bundle gives here.

A backend may round differently in batches of another size, and a server batches as requests happen to come. So the
tolerance is measured: the same pictures, here, in batches of many sizes. It must be far below the difference between
any two pictures' answers, so that a mixed-up answer can't pass.

Shapes: P pictures of side S, latents of dimension D.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.arrays import Array, Bytes
from engine.bundle import PRIOR, Bundle
from engine.client import StreamEdit, messages
from engine.latents import FITTED, Gaussian, linear, load_priors, spherical
from export.errors import InputError
from protos import dfcvae_pb2 as pb
from serving.reference import Reference
from serving.requests import Moves, file_side, jpegs, pictures, read_images, stream_request

MAX_FILES = 16  # most image files in a request: their compression would otherwise take most of the machine

_MARGIN = 4  # any two pictures' answers differ by at least so many tolerances
_FILES = 32
_PREPARED = 6


READ: dict[str, Callable[[Any], Array]] = {
    "images": read_images,
    "latents": messages.read_latents,
    "mu": lambda answer: messages.read_posterior(answer).mu,
    "log_var": lambda answer: messages.read_posterior(answer).log_var,
}
"""How parts of answers are read."""


class WrongAnswer(Exception):  # noqa: N818 - reads better without the suffix at the place of the raise
    """Raise when an answer isn't what the same bundle gives in this process."""


@dataclass(frozen=True)
class Request:
    """A request and its right answer."""

    method: str  # name of the RPC
    message: Any  # protobuf's
    # What of the answer is looked at, by its name in `READ`: images, uint8 [N, S, S, 3], or latents, float32 [N, D].
    answer: dict[str, Array] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Images or latents of the answer."""
        return len(next(iter(self.answer.values()), ()))


class Workload:
    """Pictures, what the bundle makes of them, and requests of up to `max_images` about them.

    `tolerance` is how far an answer may be from the one computed here, and `deviation` how far those were that were
    seen: the largest difference of a pixel, levels of 255, and of a latent's value.
    """

    def __init__(self, bundle: Bundle, count: int, max_images: int, threads: int | None = None) -> None:
        self._reference = reference = Reference(bundle, threads)
        self._max_images = max_images
        self.pictures: Bytes = pictures(count, reference.manifest.image_size, seed=1)
        side = file_side(reference.manifest.image_size, reference.manifest.preprocessing.crop)
        self._files = jpegs(pictures(_FILES, side, seed=2))
        self._mu, self._log_var = reference.encode(self.pictures)
        self._file_mu, _ = reference.encode(reference.read(self._files))
        self.edits = _edits(bundle)  # moves, and names to keep
        self._centre = load_priors(bundle.path / PRIOR)[FITTED].mean if PRIOR in bundle.manifest.files else None
        steps = [reference.step(moves, keep) for moves, keep in self.edits]
        self._edited_mu = [self._mu + step for step in steps]
        self.edited = [reference.decode(latents) for latents in self._edited_mu]
        self._decoded = reference.decode(self._mu)
        self._file_edited = reference.decode(self._file_mu + steps[0])
        self.deviation = {"levels": 0.0, "latents": 0.0}
        self.tolerance = self._measured()
        self._require_distinct()
        rng = np.random.default_rng(5)
        self._drawn: list[Request] = [make(rng) for make in (self._walk, self._sample) for _ in range(_PREPARED)]

    def draw(self, rng: np.random.Generator) -> Request:
        """A request of a random kind and size; small sizes are as frequent as large ones, octave by octave."""
        rows, edit = self._rows(self._size(rng), rng), int(rng.integers(len(self.edits)))
        first = rows.start % (_FILES - MAX_FILES + 1)
        few = slice(first, first + min(rows.stop - rows.start, MAX_FILES))
        kinds: tuple[Callable[[], Request], ...] = (
            lambda: self.encode(rows),
            lambda: Request("Encode", messages.encode_request(self._files[few]), {"mu": self._file_mu[few]}),
            lambda: Request("Decode", messages.decode_request(self._mu[rows]), {"images": self._decoded[rows]}),
            lambda: Request("Decode", messages.decode_request(self._mu[few], "PNG"), {"images": self._decoded[few]}),
            lambda: self.edit(rows, edit),
            lambda: Request(
                "Edit",
                messages.edit_request(StreamEdit(self._mu[rows], *self.edits[edit], result="both")),
                {"images": self.edited[edit][rows], "latents": self._edited_mu[edit][rows]},
            ),
            lambda: Request(
                "Edit",
                messages.edit_request(StreamEdit(self._files[few], *self.edits[0], file_format="PNG")),
                {"images": self._file_edited[few]},
            ),
            *[lambda: self._drawn[rows.start % len(self._drawn)]] * 2,  # a walk or a sample, computed beforehand
        )
        return kinds[rng.integers(len(kinds))]()

    def stream(self, messages: int, rng: np.random.Generator) -> list[tuple[pb.EditStreamRequest, Bytes]]:
        """Messages of an EditStream and their answers; every other one has no source: it edits the last latents."""
        plan = []
        rows = slice(0)
        for number in range(messages):
            edit = int(rng.integers(len(self.edits)))
            if number % 2 == 0:
                rows = self._rows(int(rng.integers(1, 9)), rng)
            step = StreamEdit(None if number % 2 else self.pictures[rows], *self.edits[edit])
            plan.append((stream_request(step, number + 1), self.edited[edit][rows]))
        return plan

    def check(self, request: Request, answer: Any) -> None:
        """Compares an answer with the right one."""
        for name, expected in request.answer.items():
            self.compare(READ[name](answer), expected)

    def compare(self, got: Array, expected: Array) -> None:
        """Compares images, uint8 [N, S, S, 3], by their levels, or latents, float32 [N, D]."""
        what = "levels" if expected.dtype == np.uint8 else "latents"
        if got.shape != expected.shape:
            raise WrongAnswer(f"{what} of shape {got.shape}; expected {expected.shape}")
        difference = 0.0 if np.array_equal(got, expected) else _apart(got, expected)
        self.deviation[what] = max(self.deviation[what], difference)
        if not difference <= self.tolerance[what]:
            raise WrongAnswer(f"{what} are off by up to {difference:g}")

    def encode(self, rows: slice) -> Request:
        """An Encode of some pictures."""
        message = messages.encode_request(self.pictures[rows])
        return Request("Encode", message, {"mu": self._mu[rows], "log_var": self._log_var[rows]})

    def edit(self, rows: slice, edit: int = 0) -> Request:
        """An Edit of some pictures."""
        message = messages.edit_request(StreamEdit(self.pictures[rows], *self.edits[edit]))
        return Request("Edit", message, {"images": self.edited[edit][rows]})

    def _walk(self, rng: np.random.Generator) -> Request:
        total = max(2, self._size(rng))
        steps = int(rng.integers(2, min(total, 16) + 1))
        first, last = (self._mu[rng.integers(len(self._mu), size=max(1, total // steps))] for _ in range(2))
        arc = bool(rng.integers(2))
        points = spherical(first, last, steps, self._centre) if arc else linear(first, last, steps)
        message = messages.walk_request(first, last, steps, "spherical" if arc else "linear", "both")
        return Request("Interpolate", message, {"images": self._reference.decode(points), "latents": points})

    def _sample(self, rng: np.random.Generator) -> Request:
        count, seed, temperature = self._size(rng), int(rng.integers(2**32)), float(np.float32(rng.uniform(0.5, 1.0)))
        latents = Gaussian.standard(self._mu.shape[1]).draw(count, seed, temperature)
        message = messages.sample_request(count, seed, temperature, "standard", "both")
        return Request("Sample", message, {"images": self._reference.decode(latents), "latents": latents})

    def _size(self, rng: np.random.Generator) -> int:
        return min(self._max_images, int(np.exp(rng.uniform(0, np.log(self._max_images + 1)))))

    def _rows(self, count: int, rng: np.random.Generator) -> slice:
        start = int(rng.integers(len(self.pictures) - count + 1))
        return slice(start, start + count)

    def _measured(self) -> dict[str, float]:
        """Twice what other batch sizes and a last bit of the latents make different here, plus a level."""
        reference, levels, latents = self._reference, 0.0, 0.0
        for moved, edited in zip(self._edited_mu, self.edited, strict=True):
            for towards in (-np.inf, np.inf):
                levels = max(levels, _apart(reference.decode(np.nextafter(moved, np.float32(towards))), edited))
        largest = reference.manifest.max_batch_size
        for batch in sorted({size for size in (1, 2, 3, 5, 8, 13, 21, largest - 1) if 0 < size <= largest}):
            mu, log_var = reference.encode(self.pictures, batch)
            latents = max(latents, _apart(mu, self._mu), _apart(log_var, self._log_var))
            levels = max(levels, _apart(reference.decode(mu, batch), self._decoded))
        highest = max(float(np.abs(part).max()) for part in (self._mu, self._log_var, *self._edited_mu))
        return {"levels": 2 * levels + 1, "latents": 2 * latents + 1e-5 * highest}

    def _require_distinct(self) -> None:
        for what, answers, tolerance in (
            ("images", self._decoded, self.tolerance["levels"]),
            ("latents", self._mu, self.tolerance["latents"]),
        ):
            flat = answers.reshape(len(answers), -1).astype(np.float32)
            nearest = min(float(np.abs(flat[:row] - flat[row]).max(axis=1).min()) for row in range(1, len(flat)))
            if nearest < _MARGIN * tolerance:
                raise InputError(
                    f"two pictures' {what} differ by only {nearest:g}, the tolerance is {tolerance:g}: "
                    "answers of this bundle can't be told apart; use a trained model"
                )


def _apart(got: Array, expected: Array) -> float:
    return float(np.abs(got.astype(np.float32) - expected).max())


def _edits(bundle: Bundle) -> list[tuple[Moves, tuple[str, ...]]]:
    names = bundle.directions.names
    scale = float(np.abs(bundle.directions.vectors).mean()) if len(names) else 0.1
    direction = np.random.default_rng(3).standard_normal(bundle.manifest.latent_dim, dtype=np.float32) * scale
    edits: list[tuple[Moves, tuple[str, ...]]] = [([(direction, 1.0)], ())]
    edits += [([(name, strength)], ()) for name, strength in zip(names, (1.5, -1.0), strict=False)]
    if len(names) >= 3:
        edits.append(([(names[0], 1.0), (names[1], 0.5), (direction, -0.5)], (names[2],)))
    return edits
