"""The bundle's engine in this process, without a server: what a server's answers and rates are compared with."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from engine.arrays import Array, Bytes, Floats
from engine.backends import open_backend, warmup_calls
from engine.backends.base import in_parts
from engine.bundle import Bundle
from engine.images import decode_file
from export.errors import InputError
from serving.requests import (
    SEED,
    Case,
    Moves,
    Operation,
    decode_files,
    edits_of,
    jpegs,
    pictures,
    random_latents,
    sources,
)

MIN_CALLS = 3

_LEVELS = {"raw": 0.5, "jpeg": 2.0}  # mean difference of pixels that is allowed, levels of 255


class Throughput(NamedTuple):
    """Batches that were computed in this process: their images, and the time that they took, seconds."""

    images: int
    wall_s: float
    cpu_s: float


class Reference:
    """Encodes, edits and decodes as the server does, one batch after the other; without `threads`, on all cores."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.manifest = bundle.manifest
        self.directions = bundle.directions
        self._backend = open_backend(bundle, threads)
        for call in warmup_calls(self._backend, bundle.manifest):
            call()
        self._step = self.step(edits_of(bundle.directions.names, bundle.manifest.latent_dim))

    def encode(self, images: Bytes, batch: int | None = None) -> tuple[Floats, Floats]:
        """Means and log variances, in batches of `batch`, or of the largest size."""
        largest = batch or self.manifest.max_batch_size
        mu, log_var = in_parts(lambda part: [*self._backend.encode(part)], largest, images)
        return mu, log_var

    def decode(self, latents: Floats, batch: int | None = None) -> Bytes:
        """Images, in batches of `batch`, or of the largest size."""
        return in_parts(lambda part: [self._backend.decode(part)], batch or self.manifest.max_batch_size, latents)[0]

    def step(self, moves: Moves, keep: tuple[str, ...] = ()) -> Floats:
        """What an edit adds to latents, float32 [D]."""
        return self.directions.move(moves, list(keep)).step

    def read(self, files: list[bytes]) -> Bytes:
        """What the server makes of image files, uint8 [N, S, S, 3]."""
        return np.stack([decode_file(file, self.manifest.frame) for file in files])

    def throughput(self, operation: Operation, batch: int, seconds: float) -> Throughput:
        """Computes batches for about `seconds`."""
        call = self._call(operation, batch)
        call()
        calls, cpu, start = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() - start < seconds or calls < MIN_CALLS:
            call()
            calls += 1
        return Throughput(batch * calls, time.perf_counter() - start, time.process_time() - cpu)

    def check(self, case: Case, got: Array, name: str) -> None:
        """Compares an answer with what this process computes from the same request."""
        expected = self._expected(case)
        difference = float(np.abs(got.astype(np.float64) - expected).mean()) if got.shape == expected.shape else np.inf
        allowed = 0.01 * float(np.abs(expected).max()) if case.operation == "encode" else _LEVELS[case.form]
        if not difference <= allowed:
            raise InputError(
                f"{name}: the answer is off by {difference:.3g} on average, {allowed:.3g} are allowed: "
                "is --bundle the one that the server serves?"
            )

    def _expected(self, case: Case) -> Array:
        size = self.manifest.image_size
        if case.operation == "decode":
            images = self.decode(random_latents(case.images, self.manifest.latent_dim))
        else:
            sent = sources(case, size, self.manifest.preprocessing.crop)
            mu, _ = self.encode(self.read(sent) if isinstance(sent, list) else sent)
            if case.operation == "encode":
                return mu
            images = self.decode(mu + self._step)
        return images if case.form == "raw" else decode_files(jpegs(images))

    def _call(self, operation: Operation, batch: int) -> Callable[[], object]:
        images = pictures(batch, self.manifest.image_size, SEED)
        latents, steps = self.encode(images)[0], np.tile(self._step, (batch, 1))
        return {
            "encode": lambda: self._backend.encode(images),
            "edit": lambda: self._backend.edit(images, steps),
            "slide": lambda: self._backend.decode(latents + self._step),
            "decode": lambda: self._backend.decode(latents),
        }[operation]
