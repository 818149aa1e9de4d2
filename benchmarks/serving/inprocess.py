"""The bundle's engine in this process, without a server: what a server's answers and rates are compared with."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.backends import open_backend, warm_up
from engine.bundle import Bundle
from engine.images import decode_file
from serving.bodies import SEED, STRENGTH, Case, Operation
from serving.pictures import file_side, jpeg_files, jpegs, pictures
from serving.process import ScriptError

MIN_CALLS = 3

_LEVELS = {"raw": 0.5, "jpeg": 2.0}
"""Mean difference of pixels that is allowed, levels of 255."""


@dataclass(frozen=True)
class Pace:
    """Batches that were computed in this process.

    Attributes:
        batch: Their size, images.
        seconds: How long each took.
        cpu_s: Processor time of them all, seconds.
    """

    batch: int
    seconds: list[float]
    cpu_s: float

    @property
    def images(self) -> int:
        """Images of all batches."""
        return self.batch * len(self.seconds)


class InProcess:
    """Encodes, shifts and decodes as the server does, one batch after the other.

    Args:
        bundle: What to run.
        threads: Compute threads; None takes every core.

    Raises:
        EngineError: The bundle can't be run here.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._manifest = bundle.manifest
        self.max_batch_size = bundle.manifest.max_batch_size
        self._backend = open_backend(bundle, threads)
        warm_up(self._backend, bundle.manifest)
        self._images = pictures(self.max_batch_size, bundle.manifest.image_size, SEED)
        self._latents, _ = self._backend.encode(self._images)
        target = next(iter(bundle.directions.names), np.full(bundle.manifest.latent_dim, 0.1, np.float32))
        self._step = bundle.directions.move([(target, STRENGTH)]).step

    def batch_of(self, images_under_way: int) -> int:
        """Largest batch that a server could make of so many images."""
        return min(images_under_way, self.max_batch_size)

    def pace(self, operation: Operation, batch: int, seconds: float) -> Pace:
        """Computes batches for about `seconds`."""
        call = self._call(operation, batch)
        call()
        taken: list[float] = []
        cpu = time.process_time()
        until = time.perf_counter() + seconds
        while (start := time.perf_counter()) < until or len(taken) < MIN_CALLS:
            call()
            taken.append(time.perf_counter() - start)
        return Pace(batch, taken, time.process_time() - cpu)

    def check(self, case: Case, got: npt.NDArray[Any], name: str) -> None:
        """Compares an answer with what this process computes from the same request.

        Args:
            case: What was asked.
            got: Latents or images of the answer.
            name: Of the case, for the error.

        Raises:
            ScriptError: They differ by more than rounding, and what a JPEG loses, explain.
        """
        expected = self._expected(case)
        if got.shape != expected.shape:
            raise ScriptError(f"{name}: the answer has shape {got.shape}; expected {expected.shape}")
        difference = float(np.abs(got.astype(np.float64) - expected).mean())
        allowed = 0.01 * float(np.abs(expected).max()) if case.operation == "encode" else _LEVELS[case.form]
        if not difference <= allowed:
            raise ScriptError(
                f"{name}: the answer is off by {difference:.3g} on average, {allowed:.3g} are allowed: "
                "is --bundle the one that the server serves?"
            )

    def _expected(self, case: Case) -> npt.NDArray[Any]:
        if case.operation == "decode":
            shape = (case.images, self._manifest.latent_dim)
            latents = np.random.default_rng(SEED).standard_normal(shape, np.float32)
            return _as_sent(case, self._chunks(self._backend.decode, latents))
        size, crop = self._manifest.image_size, self._manifest.preprocessing.crop
        if case.form == "jpeg":
            files = jpeg_files(case.images, file_side(size, crop), SEED)
            images = np.stack([decode_file(file, self._manifest.frame) for file in files])
        else:
            images = pictures(case.images, size, SEED)
        mu = self._chunks(lambda part: self._backend.encode(part)[0], images)
        if case.operation == "encode":
            return mu
        return _as_sent(case, self._chunks(self._backend.decode, mu + self._step))

    def _chunks(self, run: Callable[[Any], npt.NDArray[Any]], items: npt.NDArray[Any]) -> npt.NDArray[Any]:
        size = self.max_batch_size
        return np.concatenate([run(items[start : start + size]) for start in range(0, len(items), size)])

    def _call(self, operation: Operation, batch: int) -> Callable[[], object]:
        images, latents = self._images[:batch], self._latents[:batch]
        if operation == "encode":
            return lambda: self._backend.encode(images)
        if operation == "edit":
            steps = np.tile(self._step, (batch, 1))
            return lambda: self._backend.edit(images, steps)
        if operation == "slide":
            return lambda: self._backend.decode(latents + self._step)
        return lambda: self._backend.decode(latents)


def _as_sent(case: Case, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Images as they are after having been sent in the case's form."""
    if case.form == "raw":
        return images
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in jpegs(images)])
