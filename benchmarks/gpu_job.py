"""The job folder of `gpu.py`: graphs, and what the truth answered, to be checked where there is no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends import Backend
from engine.latents import Directions
from export.errors import InputError
from export.truth import Truth

EXPECTED, DIRECTIONS, FACTS = "expected.npz", "directions.safetensors", "job.json"

Array = npt.NDArray[Any]


class Recorder(Backend):
    """A backend that keeps what another one answered."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls: list[tuple[Array, ...]] = []

    def encode(self, images: Array) -> tuple[Array, Array]:
        """As the other one encodes."""
        mu, log_var = self._backend.encode(images)
        self.calls.append((images, mu, log_var))
        return mu, log_var

    def decode(self, latents: Array) -> Array:
        """As the other one decodes."""
        images = self._backend.decode(latents)
        self.calls.append((latents, images))
        return images

    def save(self, path: Path) -> None:
        """Writes the calls, in their order."""
        arrays = {f"{call}.{index}": array for call, kept in enumerate(self.calls) for index, array in enumerate(kept)}
        np.savez_compressed(path, allow_pickle=False, **arrays)


class Player(Backend):
    """A backend that answers as it was recorded, if it is asked the same again, in the same order."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            calls = len({name.partition(".")[0] for name in arrays.files})
            kept = [[name for name in arrays.files if name.startswith(f"{call}.")] for call in range(calls)]
            self._calls = [[arrays[name] for name in sorted(names)] for names in kept]
        self.images = np.concatenate([call[0] for call in self._calls if len(call) == 3])

    def encode(self, images: Array) -> tuple[Array, Array]:
        """The recorded latents."""
        mu, log_var = self._next(images)
        return mu, log_var

    def decode(self, latents: Array) -> Array:
        """The recorded images."""
        (images,) = self._next(latents)
        return images

    def _next(self, asked: Array) -> list[Array]:
        recorded, *answers = self._calls.pop(0) if self._calls else [asked[:0]]
        # Sums of the latent arithmetic may differ in the last bit between machines.
        if recorded.shape != asked.shape or not np.allclose(recorded, asked, rtol=1e-5, atol=1e-6):
            raise InputError(f"{EXPECTED} was recorded by another version of this program: prepare the job again")
        return answers


@dataclass(frozen=True)
class Job:
    """A job folder that was read.

    Attributes:
        path: The folder.
        facts: What job.json says.
        directions: Directions of the edits.
        images: The images that were encoded.
        truth: What engines are held against.
    """

    path: Path
    facts: dict[str, Any]
    directions: Directions
    images: Array
    truth: Truth

    @classmethod
    def load(cls, path: Path) -> Job:
        """Reads a job folder.

        Raises:
            InputError: it is none, or another version's.
        """
        try:
            facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
            player = Player(path / EXPECTED)
        except (OSError, ValueError) as error:
            raise InputError(f"--job {path}: {error}; make it with: gpu.py prepare --run RUN --job JOB") from None
        directions = Directions.load(path / DIRECTIONS)
        judge = "skipped: the classifier needs torch"
        images = player.images
        truth = Truth(facts["truth"], player, images, directions, batch_size=facts["max_batch"], judge=judge)
        return cls(path, facts, directions, images, truth)
