"""Batches for training: drawn from (seed, step) alone, and ready before they are asked for.

Shapes: B global batch, b this process's part of it, S image side, D latent size, A attributes.
"""

import functools
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.hardware.device import Placement
from trainer.hardware.distributed import Processes

NUM_PREFETCHED = 4
"""Batches that are made ready in advance."""
_ORDER, _BATCH, _SAMPLE = range(3)
"""What random numbers are for: the order of an epoch, the flips and noise of a batch, a sample of images."""


class Batch(NamedTuple):
    """What one process computes a step on, on its device."""

    images: Tensor  # (b, 3, S, S) float32 in [0, 1], channels last in memory
    noise: Tensor  # (b, D) float32, standard normal
    labels: Tensor  # (b, A) float32, 1 where an image has an attribute
    total: int  # images of all processes together, B


class BatchLoader:
    """The train split, in batches.

    Ours rather than `DataLoader`: a batch depends on (seed, step) alone, so a run resumes exactly, and no worker
    processes are needed, as the images are decoded already.

    All randomness (order, flips, latent noise) is drawn for the whole batch from (seed, step), so that neither the
    number of processes nor the way that images take changes what is trained on.

    Args:
        config: batch size, epochs, seed, flip.
        data: the images.
        place: where the batches go.
        processes: every process takes each `world_size`-th image of a batch, from the `rank`-th on: strided, so that
            the first images, which the feature terms look at, are spread evenly.

    Attributes:
        steps_per_epoch: see `TrainConfig.steps_per_epoch`.
        num_steps: of all epochs.
        waited_seconds: time that `stream` had to wait for a batch.
    """

    def __init__(
        self, config: TrainConfig, data: FaceData, place: Placement, processes: Processes | None = None
    ) -> None:
        self._config, self._place = config, place
        processes = processes or Processes()
        self._part = slice(processes.rank, None, processes.world_size)
        self._images, self._rows = data.images, data.rows("train")
        self._labels = data.index.labels
        self.steps_per_epoch = config.steps_per_epoch(len(self._rows))
        self.num_steps = config.epochs * self.steps_per_epoch
        self.waited_seconds = 0.0

    def _draw(self, step: int) -> tuple[tuple[Tensor, ...], int]:
        """A batch in host memory, pinned where there is a GPU: images, flips, noise and labels; and its total."""
        config = self._config
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _order(config.seed, epoch, len(self._rows))
        chosen = order[position * config.batch_size :][: config.batch_size]
        random = _generator(config.seed, _BATCH, step)
        flips = random.random(len(chosen)) < (0.5 if config.flip else 0.0)
        noise = random.standard_normal((len(chosen), config.model.latent_dim), np.float32)
        ours = self._rows[chosen[self._part]]
        labels = self._labels[ours].astype(np.float32)
        return tuple(map(self._pin, (self._images[ours], flips[self._part], noise[self._part], labels))), len(chosen)

    def _pin(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self._place.device.type == "cuda" else tensor

    def _unpack(self, host: tuple[Tensor, ...], total: int) -> Batch:
        images, flips, noise, labels = (tensor.to(self._place.device, non_blocking=True) for tensor in host)
        images = torch.where(flips.view(-1, 1, 1, 1), images.flip(2), images)  # (b, S, S, 3) uint8
        return Batch(images.permute(0, 3, 1, 2).float() / 255, noise, labels, total)

    def sample(self, count: int) -> NDArray[np.int64]:
        """Rows of `count` training images, or of all if there are fewer; drawn from the seed."""
        chosen = _generator(self._config.seed, _SAMPLE).permutation(len(self._rows))[:count]
        return self._rows[np.sort(chosen)]

    def batch(self, step: int) -> Batch:
        """The batch of one step, counted from 0, made on the spot."""
        return self._unpack(*self._draw(step))

    def stream(self, first: int, last: int) -> Generator[Batch, None, None]:
        """The batches of the steps from `first` up to, not including, `last`; the next few are made by a thread.

        Whatever goes wrong in the thread is raised here. Close the iterator to end the thread before its time.
        """

        def settle() -> None:  # a new thread would touch the first GPU, which may be another process's
            if self._place.device.type == "cuda":
                torch.cuda.set_device(self._place.device)

        with ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=settle) as pool:
            try:
                ahead: deque[Future[tuple[tuple[Tensor, ...], int]]] = deque()
                for step in range(first, last):
                    while len(ahead) < min(NUM_PREFETCHED, last - step):
                        ahead.append(pool.submit(self._draw, step + len(ahead)))
                    began = time.monotonic()
                    host = ahead.popleft().result()
                    self.waited_seconds += time.monotonic() - began
                    yield self._unpack(*host)
            finally:
                pool.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return _generator(seed, _ORDER, epoch).permutation(count)


def _generator(seed: int, purpose: int, number: int = 0) -> np.random.Generator:
    """Random numbers that no other purpose and no other number shares."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, number)))
