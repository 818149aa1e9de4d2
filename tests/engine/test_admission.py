"""Which requests a batcher takes in, holds room for, and lets go."""

import asyncio
import threading
import time

import pytest
from gated import Gated, check, check_error, device_taken, items, play, queued, submit

from engine.batching.batcher import Batcher, RequestContext
from engine.batching.fair_queue import FairQueue, Piece, Request
from engine.errors import DeadlinePassed, InvalidRequest, Overloaded, ShuttingDown


def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, 2, 3, 4)]
        await queued()
        with pytest.raises(Overloaded, match="holds 3 of at most 4 images, 2 more don't fit; send again"):
            await batcher.submit(items(5, 6), RequestContext())
        tasks += [submit(batcher, 7)]
        await queued()
        gated.release()
        await asyncio.gather(*tasks)
        await check(submit(batcher, 5, 6, 7, 8), 5, 6, 7, 8)

    assert [2, 3, 4, 7] in play(scene, max_queue=4).batches


def test_a_request_that_never_fits_is_told_so() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        with pytest.raises(InvalidRequest, match=r"has 5 images.*at most 4, send several"):
            await batcher.submit(items(*range(5)), RequestContext())

    play(scene, max_queue=4)


def test_a_refusal_says_when_to_come_back() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, *[2] * 4)]
        await queued()
        with pytest.raises(Overloaded) as unknowing:
            batcher.require_room(1)
        assert unknowing.value.retry_after_s == 1.0
        gated.release()
        await asyncio.gather(*tasks)
        gated.hold()
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, *[2] * 4)]
        await queued()
        with pytest.raises(Overloaded) as knowing:
            batcher.require_room(1)
        assert 0.01 <= (knowing.value.retry_after_s or 0) <= 60
        gated.release()
        await asyncio.gather(*tasks)

    play(scene, max_queue=4)


def test_the_last_places_are_for_clients_with_little() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1, client="greedy")]
        await gated.busy()
        tasks += [submit(batcher, 2, client="greedy") for _ in range(28)]
        await queued()
        with pytest.raises(Overloaded, match="holds 28 of at most 32 images, the last 4 places are for clients"):
            await batcher.submit(items(3), RequestContext(client="greedy"))
        tasks += [submit(batcher, 4, 4, 4, client="modest"), submit(batcher, 5, client="other")]
        await queued()
        with pytest.raises(Overloaded, match="holds 32 of at most 32 images, 1 more don't fit"):
            await batcher.submit(items(6), RequestContext(client="modest"))
        gated.release()
        await asyncio.gather(*tasks)

    play(scene, max_queue=32)


def test_reserved_room_is_kept_and_given_back() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        first = submit(batcher, 1)
        await gated.busy()
        with batcher.reserve(3) as room:
            with pytest.raises(Overloaded, match="holds 3 of at most 4 images, 2 more don't fit"):
                await batcher.submit(items(2, 3), RequestContext())
            with pytest.raises(Overloaded, match="holds 3 of at most 4"):
                batcher.reserve(2)
            held = submit(batcher, 4, 5, room=room)
            await queued()
            with pytest.raises(ValueError, match="2 items don't fit a reservation of 1"):
                await batcher.submit(items(6, 7), RequestContext(room=room))
        batcher.require_room(2)  # the third place is free again, two are taken
        gated.release()
        await check(held, 4, 5)
        await first
        batcher.require_room(4)

    play(scene, max_queue=4)


def test_close_waits_for_reserved_requests() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        with batcher.reserve(2) as room:
            closing = asyncio.ensure_future(batcher.close())
            await queued()
            with pytest.raises(ShuttingDown):
                batcher.reserve(1)
            assert not closing.done()
            await check(submit(batcher, 1, 2, room=room), 1, 2)
        await closing

    play(scene)


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


def test_close_waits_for_a_batch_that_a_thread_takes_at_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    closing, taken = threading.Event(), threading.Event()

    def waiting(queue: FairQueue) -> int:
        if closing.is_set() and threading.current_thread() is threading.main_thread():
            taken.wait(0.2)  # as if the thread went on just here; it can't
        return int(vars(queue).get("waiting", 0))

    def take(queue: FairQueue, room: int, now: float) -> tuple[list[Piece], list[Request]]:
        try:
            return whole(queue, room, now)
        finally:
            taken.set()

    whole = FairQueue.take
    monkeypatch.setattr(FairQueue, "take", take)
    monkeypatch.setattr(
        FairQueue, "waiting", property(waiting, lambda queue, value: vars(queue).update(waiting=value)), raising=False
    )

    async def scene(batcher: Batcher, gated: Gated) -> None:
        answer = submit(batcher, 1)
        await queued()
        asyncio.get_running_loop().call_later(0.3, gated.release)
        closing.set()
        await batcher.close()
        closing.clear()
        assert answer.done()

    play(scene, max_delay=3600)


def test_close_waits_until_those_who_came_too_late_are_told() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        async with device_taken(gated.scheduler):
            deadline = asyncio.get_running_loop().time() + 0.02
            late = submit(batcher, *range(8), deadline=deadline)
            while asyncio.get_running_loop().time() <= deadline:
                await asyncio.sleep(0.01)
        while True:  # the loop stands still until the device has found them
            try:
                batcher.require_room(100)
                break
            except Overloaded:
                time.sleep(0.001)
        await batcher.close()
        assert late.done()
        await check_error(late, DeadlinePassed, "passed in the queue")

    play(scene)


def test_a_passed_deadline_is_never_computed() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        first = submit(batcher, 1)
        await gated.busy()
        now = asyncio.get_running_loop().time()
        late, in_time = submit(batcher, 2, deadline=now + 0.2), submit(batcher, 3, deadline=now + 1000)
        await queued()
        while asyncio.get_running_loop().time() <= now + 0.2:
            await asyncio.sleep(0.01)
        gated.release()
        await check_error(late, DeadlinePassed, "passed in the queue")
        await check(in_time, 3)
        await first
        await check_error(submit(batcher, 4, deadline=now), DeadlinePassed, "before the request was queued")

    assert play(scene).batches == [[1], [3]]


def test_a_deadline_that_passes_between_two_batches_ends_the_request() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        deadline = asyncio.get_running_loop().time() + 0.5
        large = submit(batcher, *[2] * 20, deadline=deadline)
        await gated.busy()
        other = submit(batcher, 3)
        await queued()
        while asyncio.get_running_loop().time() <= deadline:
            await asyncio.sleep(0.01)
        gated.release()
        await check_error(large, DeadlinePassed, "passed in the queue")
        await check(other, 3)
        batcher.require_room(100)

    assert play(scene).batches == [[2] * 8, [3]]


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


def test_a_request_cancelled_while_it_is_computed_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        first = submit(batcher, 1)
        await gated.busy()
        tasks = [submit(batcher, 2), submit(batcher, 3)]
        await queued()
        gated.release(1)
        await gated.busy()
        tasks[0].cancel()
        await queued()
        gated.release()
        await check(first, 1)
        await check(tasks[1], 3)

    assert play(scene).batches == [[1], [2, 3]]
    assert not caplog.records


def test_a_request_cancelled_in_the_middle_leaves_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        large = submit(batcher, *[2] * 20)
        await gated.busy()
        other = submit(batcher, 3)
        await queued()
        large.cancel()
        await queued()
        gated.release()
        await check(other, 3)

    assert play(scene).batches == [[2] * 8, [3]]
    assert not caplog.records


def test_what_a_client_holds_room_for_counts_for_it() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        # 16 places, two of them for clients that have less than that.
        with batcher.reserve(13, client="greedy"):
            with batcher.reserve(1, client="greedy"), pytest.raises(Overloaded, match="the last 2 places are for"):
                batcher.reserve(1, client="greedy")
            with batcher.reserve(1, client="modest"):
                batcher.require_room(1, client="modest")
        gated.release()
        await check(submit(batcher, *[20] * 16, client="greedy"), *[20] * 16)

    play(scene, max_queue=16)
