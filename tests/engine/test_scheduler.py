"""How batchers and others share a scheduler, and it its time."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from gated import MAX_BATCH_SIZE, Gated, Notes, device_taken, items, play, queued, submit

from engine.arrays import Array
from engine.batching.batcher import Batcher, Part, RequestContext
from engine.batching.scheduler import Scheduler, Work


def test_two_batchers_share_a_device_in_turn() -> None:
    order: list[str] = []
    running = threading.Lock()

    def compute(name: str) -> Callable[[Array, Sequence[Part]], tuple[Array, ...]]:
        def run(batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
            assert running.acquire(blocking=False), "two batches at once"
            order.append(name)
            running.release()
            return (batch,)

        return run

    async def scene() -> None:
        scheduler = Scheduler()
        first, second = (
            Batcher(compute(name), (2,), np.float32, scheduler, max_batch_size=MAX_BATCH_SIZE, observer=Notes())
            for name in "ab"
        )
        async with device_taken(scheduler):
            tasks = [submit(first, *range(24)), submit(second, *range(24))]
            await queued()
        await asyncio.gather(*tasks)
        await first.close()
        await second.close()
        scheduler.close()

    asyncio.run(scene())
    assert order == list("ababab")


def test_a_device_runs_functions_between_batches_and_raises_what_they_raise() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, 2)]
        await queued()
        seen = asyncio.ensure_future(gated.scheduler.run(lambda: list(gated.batches)))
        failed = asyncio.ensure_future(gated.scheduler.run(int, "x"))
        unwanted = asyncio.ensure_future(gated.scheduler.run(gated.batches.clear))
        await queued()
        unwanted.cancel()
        await queued()
        gated.release()
        assert await seen == [[1]]
        with pytest.raises(ValueError, match="invalid literal"):
            await failed
        await asyncio.gather(*tasks)

    assert play(scene).batches == [[1], [2]]


def test_turns_of_a_device_and_batches_alternate() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, *[2] * 40)]
        await queued()
        seen = asyncio.gather(*(gated.scheduler.run(lambda: len(gated.batches)) for _ in range(4)))
        await queued()
        gated.release()
        await asyncio.gather(*tasks)
        assert await seen == [1, 2, 3, 4]

    play(scene)


def test_a_full_batch_starts_while_the_event_loop_is_busy() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, *[2] * 8), submit(batcher, 3)]
        await queued()
        gated.release()
        assert gated.started.acquire(timeout=60)  # the loop stands still until the next batch has started
        await asyncio.gather(*tasks)

    assert play(scene).batches == [[1], [2] * 8, [3]]


def test_a_smaller_batch_waits_for_the_next_requests_of_clients_that_were_just_answered() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        async def client() -> None:
            await batcher.submit(items(1), RequestContext())
            await batcher.submit(items(2), RequestContext())

        answered = asyncio.ensure_future(client())
        await gated.busy()
        other = submit(batcher, 3)
        await queued()
        gated.release()
        await asyncio.gather(answered, other)

    assert play(scene).batches == [[1], [3, 2]]


class Counted:
    """Computes, and notes how many do at the same time; full batches wait until `meet` of them do."""

    def __init__(self, meet: int) -> None:
        self.inside = 0
        self.most = 0
        self.order: list[int] = []
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(meet)

    def __call__(self, batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.order.append(len(batch))
        if len(batch) == MAX_BATCH_SIZE:
            self._barrier.wait(60)
        elif self.inside > 1:
            raise RuntimeError("a batch that isn't full was started beside another")
        with self._lock:
            self.inside -= 1
        return (batch,)


@pytest.mark.parametrize(("overlaps", "most"), [(True, 2), (False, 1)])
def test_full_batches_are_computed_side_by_side_where_the_backend_likes_it(overlaps: bool, most: int) -> None:
    async def scene() -> Counted:
        run, scheduler = Counted(meet=most), Scheduler()
        batcher = Batcher(
            run, (2,), np.float32, scheduler, max_batch_size=MAX_BATCH_SIZE, observer=Notes(), overlaps=overlaps
        )
        for count in (2 * MAX_BATCH_SIZE, 2, 4 * MAX_BATCH_SIZE + 3, 1):
            sent = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
            (got,) = await batcher.submit(sent, RequestContext())
            np.testing.assert_array_equal(got, sent)
        await batcher.close()
        scheduler.close()
        return run

    run = asyncio.run(scene())
    assert run.most == most
    assert run.order == [8, 8, 2, 8, 8, 8, 8, 3, 1]


def test_who_wants_the_device_alone_gets_its_turn_among_full_batches() -> None:
    order: list[str] = []
    inside: list[str] = []

    def compute(name: str) -> Callable[[Array, Sequence[Part]], tuple[Array, ...]]:
        def run(batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
            inside.append(name)
            order.append("+".join(sorted(inside)))
            time.sleep(0.001)
            inside.remove(name)
            return (batch,)

        return run

    async def scene() -> None:
        scheduler = Scheduler()
        many, alone = (
            Batcher(
                compute(name),
                (2,),
                np.float32,
                scheduler,
                max_batch_size=4,
                observer=Notes(),
                max_queue=10_000,
                overlaps=name == "many",
            )
            for name in ("many", "alone")
        )
        flood = asyncio.ensure_future(many.submit(np.zeros((2000, 2), np.float32), RequestContext()))
        await asyncio.sleep(0.01)
        await alone.submit(np.zeros((1, 2), np.float32), RequestContext())
        assert not flood.done()
        await scheduler.run(lambda: order.append("job" + "".join(inside)))
        assert not flood.done()
        await flood
        for batcher in (many, alone):
            await batcher.close()
        scheduler.close()

    asyncio.run(scene())
    assert order.count("alone") == 1
    assert order.count("job") == 1
    assert "alone+many" not in order
    assert "many+many" in order


def test_batches_that_follow_one_another_are_computed_by_one_thread() -> None:
    counted, threads = Counted(meet=2), list[str]()

    def run(batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
        threads.append(threading.current_thread().name)
        return counted(batch, parts)

    async def scene() -> None:
        scheduler = Scheduler()
        batcher = Batcher(
            run,
            (2,),
            np.float32,
            scheduler,
            max_batch_size=MAX_BATCH_SIZE,
            observer=Notes(),
            overlaps=1,
        )
        await asyncio.gather(submit(batcher, *range(MAX_BATCH_SIZE)), submit(batcher, *range(MAX_BATCH_SIZE)))
        assert len(set(threads)) == 2, "there are two, and both have begun"
        threads.clear()
        for _ in range(20):
            await submit(batcher, 1)
        await batcher.close()
        scheduler.close()

    asyncio.run(scene())
    assert len(set(threads)) == 1, threads


@pytest.mark.parametrize("overlaps", [0, 1])
def test_a_small_batch_has_its_turn_among_full_ones_whose_results_the_event_loop_has_not_seen(overlaps: int) -> None:
    order: list[str] = []
    computed = threading.Semaphore(0)

    def compute(name: str) -> Callable[[Array, Sequence[Part]], tuple[Array, ...]]:
        def run(batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
            order.append(name)
            computed.release()
            return (batch,)

        return run

    async def scene() -> None:
        scheduler = Scheduler()
        full, small = (
            Batcher(
                compute(name),
                (2,),
                np.float32,
                scheduler,
                max_batch_size=MAX_BATCH_SIZE,
                observer=Notes(),
                overlaps=overlaps,
            )
            for name in ("full", "small")
        )
        async with device_taken(scheduler):
            tasks = [submit(full, *range(10 * MAX_BATCH_SIZE)), submit(small, 1)]
            await queued()
        for _ in range(10):
            assert computed.acquire(timeout=60)  # the loop stands still
        await asyncio.gather(*tasks)
        for batcher in (full, small):
            await batcher.close()
        scheduler.close()

    asyncio.run(scene())
    assert order.index("small") <= 1 + overlaps


class Fickle:
    """A source that changes its mind each time it is asked: never, now, never..."""

    overlaps = 0

    def __init__(self) -> None:
        self.asked = 0
        self.takes = 0

    def is_ready(self) -> bool:
        return False

    def due(self) -> float:
        self.asked += 1
        return 0.0 if self.asked % 2 == 0 else float("inf")

    def take(self, now: float) -> Work | None:
        self.takes += 1
        return None


def test_a_source_that_becomes_due_during_a_look_is_not_started_beside_a_batch() -> None:
    scheduler, fickle = Scheduler(), Fickle()
    inside, go = threading.Event(), threading.Event()

    class Busy(Fickle):
        overlaps = 1  # there is a thread that looks meanwhile

        def due(self) -> float:
            return float("inf") if self.takes else 0.0

        def take(self, now: float) -> Work:
            self.takes += 1
            return self.work

        def work(self) -> None:
            inside.set()
            go.wait(60)

    scheduler.attach(Busy())
    assert inside.wait(60)
    scheduler.attach(fickle)
    while fickle.asked < 6:
        with scheduler.lock:
            scheduler.wake(ready=True)
        time.sleep(0.001)
    assert fickle.takes == 0
    go.set()
    scheduler.close()
