"""A batcher with a device that a test opens and closes at will."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from engine.arrays import Array
from engine.batching.batcher import Batcher, BatchObserver, Part, RequestContext
from engine.batching.scheduler import Scheduler
from engine.errors import EngineError

MAX_BATCH_SIZE = 8


class Gated:
    """Doubles and negates its items, one batch for each `release`; remembers every batch it was given."""

    scheduler: Scheduler

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.parts: list[list[Part]] = []
        self.arrays: list[Array] = []
        self.started = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    def __call__(self, batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
        self.batches.append(batch[:, 0].astype(int).tolist())
        self.parts.append(list(parts))
        self.arrays.append(batch)
        self.started.release()
        self._gate.acquire()
        if (batch == 13).any():
            raise RuntimeError("thirteen")
        if (batch == 14).any():
            return batch[:-1], batch[:-1]
        if (batch == 15).any():
            raise SystemExit("fifteen")
        return batch * 2, -batch

    def release(self, batches: int = 10_000) -> None:
        self._gate.release(batches)

    def hold(self) -> None:
        """Computes nothing more until the next release."""
        self.started = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    async def busy(self) -> None:
        """Waits until a batch is being computed; not in a thread, which would outlive a failed test."""
        while not self.started.acquire(blocking=False):
            await asyncio.sleep(0.001)


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.depths: list[int] = []
        self.batches: list[tuple[int, list[float], float]] = []
        self.failures = 0

    def waiting(self, items: int) -> None:
        self.depths.append(items)

    def batch(self, items: int, waits: Sequence[float], seconds: float) -> None:
        self.batches.append((items, list(waits), seconds))

    def failed(self) -> None:
        self.failures += 1


@asynccontextmanager
async def device_taken(scheduler: Scheduler) -> AsyncIterator[None]:
    """Keeps batches from starting: something else is computed meanwhile."""
    began, go = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        go.wait()

    job = asyncio.ensure_future(scheduler.run(wait))
    await asyncio.to_thread(began.wait)
    try:
        yield
    finally:
        go.set()
        job.cancel()  # nobody waits for it


def items(*values: int) -> Array:
    return np.array([[value, value] for value in values], np.float32)


def play(
    scene: Callable[[Batcher, Gated], Awaitable[None]],
    max_queue: int = 100,
    max_delay: float = 0.0,
    observer: BatchObserver | None = None,
) -> Gated:
    """Runs a scene with a batcher whose device computes only what the scene releases."""
    gated = Gated()

    async def run() -> None:
        scheduler = gated.scheduler = Scheduler()
        batcher = Batcher(
            gated,
            (2,),
            np.float32,
            scheduler,
            max_batch_size=MAX_BATCH_SIZE,
            max_queue=max_queue,
            max_delay=max_delay,
            observer=observer or Notes(),
        )
        try:
            await scene(batcher, gated)
        finally:
            gated.release()
            await batcher.close()
            scheduler.close()

    asyncio.run(run())
    return gated


def submit(batcher: Batcher, *values: int, tag: Any = None, **context: Any) -> "asyncio.Task[tuple[Array, ...]]":
    return asyncio.ensure_future(batcher.submit(items(*values), RequestContext(**context), tag=tag))


async def queued() -> None:
    """Lets tasks that were just made run up to their place in the queue."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def check(task: "asyncio.Task[tuple[Array, ...]]", *values: int) -> None:
    doubled, negated = await task
    np.testing.assert_array_equal(doubled, items(*values) * 2)
    np.testing.assert_array_equal(negated, -items(*values))


async def check_error(task: "asyncio.Task[Any]", kind: type[EngineError], message: str) -> None:
    with pytest.raises(kind, match=message):
        await task
