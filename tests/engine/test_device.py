"""How batchers and others share a device, and a device its time."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from gated import MAX_BATCH_SIZE, Gated, check, items, play, queued, submit

from engine.batching.batcher import Array, Batcher, Device, Part


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


def test_a_device_runs_functions_between_batches_and_raises_what_they_raise() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, 2)]
        await queued()
        seen = asyncio.ensure_future(gated.device.run(lambda: list(gated.batches)))
        failed = asyncio.ensure_future(gated.device.run(int, "x"))
        unwanted = asyncio.ensure_future(gated.device.run(gated.batches.clear))
        await queued()
        unwanted.cancel()
        await queued()
        gated.release()
        assert await seen == [[1]]
        with pytest.raises(ValueError, match="invalid literal"):
            await failed
        await asyncio.gather(*tasks)

    assert play(scene).batches == [[1], [2]]


def test_a_device_that_is_held_starts_no_batch() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        async with gated.device.free:
            task = submit(batcher, 1)
            assert await gated.device.run(lambda: 7) == 7
            assert gated.batches == []
        await check(task, 1)

    play(scene)


def test_turns_of_a_device_and_batches_alternate() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, *[2] * 40)]
        await queued()
        seen: list[int] = []

        async def warm_up() -> None:
            for _ in range(4):
                async with gated.device.free:
                    seen.append(await gated.device.run(lambda: len(gated.batches)))

        warming = asyncio.ensure_future(warm_up())
        await queued()
        gated.release()
        await asyncio.gather(*tasks, warming)
        assert seen == [1, 2, 3, 4]

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
            await batcher.submit(items(1))
            await batcher.submit(items(2))

        answered = asyncio.ensure_future(client())
        await gated.busy()
        other = submit(batcher, 3)
        await queued()
        gated.release()
        await asyncio.gather(answered, other)

    assert play(scene).batches == [[1], [3, 2]]
