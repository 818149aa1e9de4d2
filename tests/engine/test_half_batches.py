"""Where batches overlap, a crowd that fits one batch is computed in two halves, one beside the other's way home."""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from gated import Notes, device_taken, queued, submit

from engine.arrays import Array
from engine.batching.batcher import Batcher, Part
from engine.batching.scheduler import Scheduler

LARGEST = 32


class Held:
    """Computes batches that are let through one by one."""

    def __init__(self) -> None:
        self.started: queue.Queue[int] = queue.Queue()
        self.go = threading.Semaphore(0)

    def __call__(self, batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
        self.started.put(len(batch))
        assert self.go.acquire(timeout=60)
        return (batch,)

    def next(self) -> int:
        """Size of the next batch that is started, however long it takes."""
        return self.started.get(timeout=60)


def play(
    scene: Callable[[Batcher, Scheduler, Held], Awaitable[None]], overlaps: int = 1, together: bool = False
) -> None:
    """Runs a scene, and lets all batches through at its end."""

    async def whole() -> None:
        held, scheduler = Held(), Scheduler()
        batcher = Batcher(
            held,
            (2,),
            np.float32,
            scheduler,
            max_batch_size=LARGEST,
            observer=Notes(),
            overlaps=overlaps,
            together=together,
        )
        await scene(batcher, scheduler, held)
        held.go.release(100)
        await batcher.close()
        scheduler.close()

    asyncio.run(whole())


def test_half_a_batch_starts_and_another_beside_it() -> None:
    async def scene(batcher: Batcher, scheduler: Scheduler, held: Held) -> None:
        async with device_taken(scheduler):
            tasks = [submit(batcher, value) for value in range(20)]
            await queued()
        assert held.next() == 16
        tasks += [submit(batcher, value) for value in range(12)]
        await queued()
        assert held.next() == 16
        held.go.release(2)
        await asyncio.gather(*tasks)

    play(scene)


def test_a_batch_of_a_backend_that_wants_one_at_a_time_is_not_cut() -> None:
    async def scene(batcher: Batcher, scheduler: Scheduler, held: Held) -> None:
        async with device_taken(scheduler):
            for value in range(20):
                submit(batcher, value)
            await queued()
        assert held.next() == 20

    play(scene, overlaps=0)


def test_a_large_request_is_not_cut() -> None:
    async def scene(batcher: Batcher, scheduler: Scheduler, held: Held) -> None:
        async with device_taken(scheduler):
            submit(batcher, *range(20))
            await queued()
        assert held.next() == 20

    play(scene)


def test_a_crowd_that_fills_whole_batches_is_not_halved() -> None:
    async def scene(batcher: Batcher, scheduler: Scheduler, held: Held) -> None:
        async with device_taken(scheduler):
            tasks = [submit(batcher, value) for value in range(2 * LARGEST)]
            await queued()
        assert [held.next(), held.next()] == [LARGEST, LARGEST]
        held.go.release()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks += [submit(batcher, value) for value in range(20)]
        await queued()
        held.go.release(3)
        await asyncio.gather(*tasks)
        assert held.next() == 20

    play(scene)


def small_crowd(first: int, *sizes: int, together: bool) -> None:
    """A crowd of `first` is computed, and comes back: the sizes of the batches that start then."""

    async def scene(batcher: Batcher, scheduler: Scheduler, held: Held) -> None:
        async with device_taken(scheduler):
            tasks = [submit(batcher, value) for value in range(first)]
            await queued()
        assert held.next() == first
        held.go.release()
        await asyncio.gather(*tasks)
        for value in range(first):
            submit(batcher, value)
        await queued()
        assert [held.next() for _ in sizes] == list(sizes)

    play(scene, together=together)


def test_a_small_crowd_is_cut_where_threads_compute_together() -> None:
    small_crowd(8, 4, 4, together=True)
    small_crowd(12, 6, 6, together=True)


def test_a_crowd_of_a_few_is_not_cut() -> None:
    small_crowd(6, 6, together=True)


def test_a_small_crowd_is_not_cut_where_each_thread_has_a_share() -> None:
    small_crowd(8, 8, together=False)
