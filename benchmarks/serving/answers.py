"""What a server must answer: the same bundle computed in this process, and how exactly the two have to agree.

A backend may round differently in batches of another size, and a server batches as requests happen to come. So the
tolerance is measured: the same pictures, here, in batches of many sizes. It must be far below the difference between
any two pictures' answers, so that a mixed-up answer can't pass.

Shapes: P pictures of side S, latents of dimension D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.backends import Backend, open_backend
from engine.bundle import Bundle
from engine.images import decode_file
from serving.pictures import file_side, jpeg_files, pictures
from serving.process import ScriptError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Moves = list[tuple[str | Floats, float]]

_MARGIN = 4
"""Any two pictures' answers differ by at least so many tolerances."""
_FILES = 32


class WrongAnswer(Exception):  # noqa: N818 - reads better without the suffix at the place of the raise
    """Raise when an answer isn't what the same bundle gives in this process."""


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may be from the one computed here.

    Attributes:
        levels: Largest difference of a pixel, levels of 255.
        latents: Largest difference of a latent's value.
    """

    levels: int
    latents: float


@dataclass
class Deviation:
    """What checked answers differed by, over all of them.

    Attributes:
        images: Images that were compared.
        inexact: Those with a pixel that differed.
        levels: Largest difference of a pixel.
        latents: Largest difference of a latent's value.
    """

    images: int = 0
    inexact: int = 0
    levels: int = 0
    latents: float = 0.0


class Answers:
    """Pictures, and what the bundle makes of them.

    Args:
        bundle: What the server serves.
        count: Number P of pictures.
        threads: Compute threads; None takes every core.

    Raises:
        ScriptError: The bundle's answers to different pictures can't be told apart.
        EngineError: The bundle can't be run here.

    Attributes:
        pictures: uint8 [P, S, S, 3].
        files: JPEG files, of which `file_pictures` are what the server makes of them.
        mu: float32 [P, D], of the pictures; likewise log_var.
        edits: Lists of moves, and names to keep.
        edited_mu: One float32 [P, D] per edit.
        edited: One uint8 [P, S, S, 3] per edit.
        decoded: uint8 [P, S, S, 3], of `mu`.
    """

    def __init__(self, bundle: Bundle, count: int, threads: int | None = None) -> None:
        manifest = bundle.manifest
        self.image_size, self.latent_dim = manifest.image_size, manifest.latent_dim
        self.max_batch_size = manifest.max_batch_size
        self._bundle = bundle
        self.backend: Backend = open_backend(bundle, threads)
        self.pictures = pictures(count, self.image_size, seed=1)
        crop = manifest.preprocessing.crop
        self.files = jpeg_files(_FILES, file_side(self.image_size, crop), seed=2)
        self.file_pictures = np.stack([decode_file(file, manifest.frame) for file in self.files])
        self.mu, self.log_var = self.encode(self.pictures)
        self.file_mu, _ = self.encode(self.file_pictures)
        self.edits = _edits(bundle)
        self.edited_mu = [self.shifted(self.mu, index) for index in range(len(self.edits))]
        self.edited = [self.decode(latents) for latents in self.edited_mu]
        self.decoded = self.decode(self.mu)
        self.file_edited = self.decode(self.shifted(self.file_mu, 0))
        self.tolerance = self._measure()
        self._require_distinct()

    def encode(self, images: Bytes, batch: int | None = None) -> tuple[Floats, Floats]:
        """Means and log variances, in batches of `batch`, or of the largest size."""
        pairs = [self.backend.encode(images[rows]) for rows in self._rows(len(images), batch)]
        return np.concatenate([mu for mu, _ in pairs]), np.concatenate([log_var for _, log_var in pairs])

    def decode(self, latents: Floats, batch: int | None = None) -> Bytes:
        """Images, in batches of `batch`, or of the largest size."""
        return np.concatenate([self.backend.decode(latents[rows]) for rows in self._rows(len(latents), batch)])

    def shifted(self, latents: Floats, index: int) -> Floats:
        """Latents after edit number `index`."""
        moves, keep = self.edits[index]
        return latents + self._bundle.directions.move(moves, keep).step

    def check_images(self, got: Bytes, expected: Bytes, deviation: Deviation) -> None:
        """Compares images, uint8 [n, S, S, 3].

        Raises:
            WrongAnswer: They differ in number, or by more than the tolerance.
        """
        if got.shape != expected.shape:
            raise WrongAnswer(f"images of shape {got.shape}; expected {expected.shape}")
        deviation.images += len(got)
        if np.array_equal(got, expected):
            return
        difference = np.abs(got.astype(np.int16) - expected).max(axis=(1, 2, 3))
        deviation.inexact += int(np.count_nonzero(difference))
        deviation.levels = max(deviation.levels, int(difference.max()))
        if difference.max() > self.tolerance.levels:
            worst = int(difference.argmax())
            raise WrongAnswer(f"image {worst} of {len(got)} is off by {difference[worst]} levels")

    def check_latents(self, got: Floats, expected: Floats, deviation: Deviation) -> None:
        """Compares latents, float32 [n, D].

        Raises:
            WrongAnswer: They differ in number, or by more than the tolerance.
        """
        if got.shape != expected.shape:
            raise WrongAnswer(f"latents of shape {got.shape}; expected {expected.shape}")
        difference = float(np.abs(got - expected).max())
        deviation.latents = max(deviation.latents, difference)
        if not difference <= self.tolerance.latents:
            raise WrongAnswer(f"latents are off by {difference:g}")

    def _rows(self, count: int, batch: int | None) -> list[slice]:
        size = batch or self.max_batch_size
        return [slice(start, start + size) for start in range(0, count, size)]

    def _measure(self) -> Tolerance:
        """Twice what other batch sizes and a last bit of the latents make different here, plus a level."""
        levels, latents = 0, 0.0
        for index, moved in enumerate(self.edited_mu):
            for towards in (-np.inf, np.inf):
                again = self.decode(np.nextafter(moved, np.float32(towards)))
                levels = max(levels, int(np.abs(again.astype(np.int16) - self.edited[index]).max()))
        for batch in sorted({1, 2, 3, 5, 8, 13, 21, self.max_batch_size - 1} - {0}):
            if batch > self.max_batch_size:
                continue
            mu, log_var = self.encode(self.pictures, batch)
            latents = max(latents, float(np.abs(mu - self.mu).max()), float(np.abs(log_var - self.log_var).max()))
            again = self.decode(self.shifted(mu, 0), batch)
            levels = max(levels, int(np.abs(again.astype(np.int16) - self.edited[0]).max()))
        largest = max(float(np.abs(part).max()) for part in (self.mu, self.log_var, *self.edited_mu))
        return Tolerance(2 * levels + 1, 2 * latents + 1e-5 * largest)

    def _require_distinct(self) -> None:
        for what, answers, tolerance in (
            ("images", self.decoded, self.tolerance.levels),
            ("latents", self.mu, self.tolerance.latents),
        ):
            flat = answers.reshape(len(answers), -1).astype(np.float32)
            for index in range(1, len(flat)):
                nearest = float(np.abs(flat[:index] - flat[index]).max(axis=1).min())
                if nearest < _MARGIN * tolerance:
                    raise ScriptError(
                        f"two pictures' {what} differ by only {nearest:g}, the tolerance is {tolerance:g}: "
                        "answers of this bundle can't be told apart; use a trained model"
                    )


def _edits(bundle: Bundle) -> list[tuple[Moves, list[str]]]:
    names = bundle.directions.names
    scale = float(np.abs(bundle.directions.vectors).mean()) if len(names) else 0.1
    direction = np.random.default_rng(3).standard_normal(bundle.manifest.latent_dim, dtype=np.float32) * scale
    edits: list[tuple[Moves, list[str]]] = [([(direction, 1.0)], [])]
    edits += [([(name, strength)], []) for name, strength in zip(names, (1.5, -1.0), strict=False)]
    if len(names) >= 3:
        edits.append(([(names[0], 1.0), (names[1], 0.5), (direction, -0.5)], [names[2]]))
    return edits
