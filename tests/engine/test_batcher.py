"""The batcher with a device that a test opens and closes at will."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from engine.batcher import Array, Batcher, Device
from engine.errors import ComputeFailed, DeadlinePassed, EngineError, Overloaded, ShuttingDown

MAX_BATCH_SIZE = 8


class Gated:
    """Doubles and negates its items, one batch for each `release`; remembers every batch it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.arrays: list[Array] = []
        self.started = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    def __call__(self, batch: Array) -> tuple[Array, ...]:
        self.batches.append(batch[:, 0].astype(int).tolist())
        self.arrays.append(batch)
        self.started.release()
        self._gate.acquire()
        if (batch == 13).any():
            raise RuntimeError("thirteen")
        if (batch == 14).any():
            return batch[:-1], batch[:-1]
        return batch * 2, -batch

    def release(self, batches: int = 10_000) -> None:
        self._gate.release(batches)

    async def busy(self) -> None:
        """Waits until a batch is being computed."""
        await asyncio.get_running_loop().run_in_executor(None, self.started.acquire)


def items(*values: int) -> Array:
    return np.array([[value, value] for value in values], np.float32)


def play(scene: Callable[[Batcher, Gated], Awaitable[None]], max_queue: int = 100, max_delay: float = 0.0) -> Gated:
    """Runs a scene with a batcher whose device computes only what the scene releases."""
    gated = Gated()

    async def run() -> None:
        device = Device()
        batcher = Batcher(
            gated,
            (2,),
            np.float32,
            device,
            max_batch_size=MAX_BATCH_SIZE,
            max_queue=max_queue,
            max_delay=max_delay,
        )
        try:
            await scene(batcher, gated)
        finally:
            gated.release()
            await batcher.close()
            device.close()

    asyncio.run(run())
    return gated


def submit(batcher: Batcher, *values: int, deadline: float | None = None) -> "asyncio.Task[tuple[Array, ...]]":
    return asyncio.ensure_future(batcher.submit(items(*values), deadline))


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


def test_a_lone_request_starts_at_once_and_is_not_copied() -> None:
    request = items(1, 2, 3)

    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        doubled, _ = await batcher.submit(request)
        np.testing.assert_array_equal(doubled, request * 2)

    gated = play(scene)
    assert gated.batches == [[1, 2, 3]]
    assert np.shares_memory(gated.arrays[0], request)


def test_what_arrives_while_the_device_is_busy_shares_the_next_batch() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        first = submit(batcher, 1)
        await gated.busy()
        others = [submit(batcher, 2, 3), submit(batcher, 4), submit(batcher, 5, 6, 7)]
        await queued()
        gated.release()
        await check(first, 1)
        for task, values in zip(others, [(2, 3), (4,), (5, 6, 7)], strict=True):
            await check(task, *values)

    gated = play(scene)
    assert gated.batches == [[1], [2, 3, 4, 5, 6, 7]]
    assert gated.arrays[1].flags.c_contiguous


def test_a_large_request_is_split_and_put_together_and_lets_others_in_between() -> None:
    large = tuple(range(100, 120))

    async def scene(batcher: Batcher, gated: Gated) -> None:
        first = submit(batcher, 1)
        await gated.busy()
        tasks = [submit(batcher, *large), submit(batcher, 2), submit(batcher, 3)]
        await queued()
        gated.release()
        await check(tasks[0], *large)
        await check(tasks[1], 2)
        await check(tasks[2], 3)
        await first

    batches = play(scene).batches
    assert batches == [[1], [*range(100, 108)], [2, 3, *range(108, 114)], [*range(114, 120)]]


def test_two_large_requests_take_turns() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        first = submit(batcher, 1)
        await gated.busy()
        tasks = [submit(batcher, *[20] * 16), submit(batcher, *[30] * 16)]
        await queued()
        gated.release()
        await check(tasks[0], *[20] * 16)
        await check(tasks[1], *[30] * 16)
        await first

    assert [batch[0] for batch in play(scene).batches] == [1, 20, 30, 20, 30]


def test_a_small_request_that_a_batch_cut_is_finished_next() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, *[2] * 6), submit(batcher, *[3] * 4), submit(batcher, *[4] * 8)]
        await queued()
        gated.release()
        await asyncio.gather(*tasks)

    assert play(scene).batches == [[1], [2] * 6 + [3] * 2, [3] * 2 + [4] * 6, [4] * 2]


@pytest.mark.parametrize("bad", [13, 14])
def test_a_failed_batch_fails_its_own_requests_only(bad: int, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        await check(submit(batcher, 1), 1)
        await check_error(submit(batcher, bad), ComputeFailed, "the server's log has the reason")
        await check(submit(batcher, 2), 2)
        # A request of several batches leaves the queue when one of them fails.
        await check_error(submit(batcher, bad, *[5] * 30), ComputeFailed, "log")
        batcher.require_room(100)

    gated = play(scene)
    assert "thirteen" in caplog.text or "1 items gave [0, 0] results" in caplog.text
    assert len(gated.batches) == 4


def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, 2, 3, 4)]
        await queued()
        with pytest.raises(Overloaded, match="holds 3 of at most 4 images, 2 more don't fit; send again"):
            await batcher.submit(items(5, 6))
        tasks += [submit(batcher, 7)]
        gated.release()
        await asyncio.gather(*tasks)
        await check(submit(batcher, 5, 6, 7, 8), 5, 6, 7, 8)

    assert [2, 3, 4, 7] in play(scene, max_queue=4).batches


def test_a_passed_deadline_is_never_computed() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        now = asyncio.get_running_loop().time()
        first = submit(batcher, 1)
        await gated.busy()
        late, in_time = submit(batcher, 2, deadline=now + 0.05), submit(batcher, 3, deadline=now + 1000)
        await queued()
        while asyncio.get_running_loop().time() <= now + 0.05:
            await asyncio.sleep(0.01)
        gated.release()
        await check_error(late, DeadlinePassed, "passed in the queue")
        await check(in_time, 3)
        await first
        await check_error(submit(batcher, 4, deadline=now), DeadlinePassed, "before the request was queued")

    assert play(scene).batches == [[1], [3]]


def test_a_cancelled_request_leaves_the_queue() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        first = submit(batcher, 1)
        await gated.busy()
        waiting = submit(batcher, 2, 3, 4)
        await queued()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        batcher.require_room(4)  # its room is free again, while the device is still busy
        gated.release()
        await first
        await check(submit(batcher, 5), 5)

    assert play(scene, max_queue=4).batches == [[1], [5]]


def test_a_request_cancelled_in_the_middle_leaves_the_rest() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        large = submit(batcher, *[2] * 20)
        await gated.busy()
        other = submit(batcher, 3)
        await queued()
        large.cancel()
        gated.release()
        await check(other, 3)

    assert play(scene).batches == [[2] * 8, [3]]


def test_a_delay_lets_a_batch_fill_and_ends_when_it_is_full() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        await asyncio.gather(*(submit(batcher, value, value) for value in range(4)))

    # An hour of delay: the test ends only because a full batch doesn't wait.
    assert play(scene, max_delay=3600).batches == [[0, 0, 1, 1, 2, 2, 3, 3]]


def test_a_delay_ends_by_itself() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        await check(submit(batcher, 1), 1)

    assert play(scene, max_delay=0.02).batches == [[1]]


def test_close_answers_what_was_accepted_and_refuses_the_rest() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, *[2] * 20)]
        await queued()
        closing = asyncio.ensure_future(batcher.close())
        await queued()
        await check_error(submit(batcher, 3), ShuttingDown, "another one")
        assert not closing.done()
        gated.release()
        await closing
        await check(tasks[0], 1)
        await check(tasks[1], *[2] * 20)

    play(scene)


def test_two_batchers_share_a_device_in_turn() -> None:
    order: list[str] = []
    running = threading.Lock()

    def compute(name: str) -> Callable[[Array], tuple[Array, ...]]:
        def run(batch: Array) -> tuple[Array, ...]:
            assert running.acquire(blocking=False), "two batches at once"
            order.append(name)
            running.release()
            return (batch,)

        return run

    async def scene() -> None:
        device = Device()
        first, second = (
            Batcher(compute(name), (2,), np.float32, device, max_batch_size=MAX_BATCH_SIZE) for name in "ab"
        )
        async with device.free:
            tasks = [submit(first, *range(24)), submit(second, *range(24))]
            await queued()
        await asyncio.gather(*tasks)
        await first.close()
        await second.close()
        device.close()

    asyncio.run(scene())
    assert order == list("ababab")


@pytest.mark.parametrize("wrong", [np.zeros((0, 2), np.float32), np.zeros((1, 3), np.float32), np.zeros((1, 2))])
def test_items_of_another_kind_are_a_mistake_of_the_caller(wrong: Array) -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        with pytest.raises(ValueError, match=r"items must be n >= 1 of float32 \(2,\)"):
            await batcher.submit(wrong)

    play(scene)
