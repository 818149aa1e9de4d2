"""How requests become batches, and results requests again."""

import asyncio
import gc
import random
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from gated import MAX_BATCH_SIZE, Gated, Notes, check, check_error, device_taken, items, play, queued, submit

from engine.arrays import Array
from engine.batching.batcher import Batcher, Part, RequestContext
from engine.batching.scheduler import Scheduler
from engine.errors import ComputeFailed, Overloaded


def test_a_lone_request_starts_at_once_and_is_not_copied() -> None:
    request = items(1, 2, 3)

    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        doubled, _ = await batcher.submit(request, RequestContext())
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


@pytest.mark.parametrize("bad", [13, 14, 15])
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
    assert {13: "thirteen", 14: "1 items gave [0, 0] results", 15: "fifteen"}[bad] in caplog.text
    assert len(gated.batches) == 4


def test_a_delay_lets_a_batch_fill_and_ends_when_it_is_full() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        tasks = [submit(batcher, value, value) for value in range(3)]
        await queued()
        await gated.scheduler.run(lambda: None)  # the device has seen that there is no full batch
        await asyncio.gather(*tasks, submit(batcher, 3, 3))

    # An hour of delay: the test ends only because a full batch doesn't wait.
    assert play(scene, max_delay=3600).batches == [[0, 0, 1, 1, 2, 2, 3, 3]]


def test_a_delay_ends_by_itself() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        await check(submit(batcher, 1), 1)

    assert play(scene, max_delay=0.02).batches == [[1]]


@pytest.fixture
def endless_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch starts only because nobody waits for more than the crowd."""
    monkeypatch.setattr("engine.batching.scheduler._LONGEST", 1e9)
    monkeypatch.setattr("engine.batching.scheduler._LONGEST_S", 1e9)


@pytest.mark.usefixtures("endless_window")
def test_a_crowd_that_comes_back_shares_a_batch_again() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        async def client(number: int, times: int) -> None:
            for _ in range(times):
                await check(submit(batcher, number), number)
                for _ in range(5 * number):  # some come back later than others
                    await queued()

        first = asyncio.ensure_future(client(6, 4))
        await gated.busy()
        clients = [asyncio.ensure_future(client(number, 3)) for number in range(6)]
        await queued()
        gated.release()
        await asyncio.gather(first, *clients)

    assert [len(batch) for batch in play(scene).batches] == [1, 7, 7, 7]


@pytest.mark.usefixtures("endless_window")
def test_a_client_alone_never_waits_whatever_it_sends() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        gated.release()
        for size in (8, 1, 20, 3, 1, 1):
            await asyncio.wait_for(check(submit(batcher, *range(20, 20 + size)), *range(20, 20 + size)), 60)

    play(scene)


@pytest.mark.usefixtures("endless_window")
def test_a_client_that_gave_up_is_not_waited_for() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        given_up = submit(batcher, 1)
        await gated.busy()
        given_up.cancel()
        other = submit(batcher, 2)
        await queued()
        gated.release()
        await asyncio.wait_for(check(other, 2), 60)

    assert play(scene).batches == [[1], [2]]


@pytest.mark.usefixtures("endless_window")
def test_a_crowd_is_counted_by_its_requests_and_not_by_their_items() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        async def client(number: int, *sizes: int) -> None:
            for size in sizes:
                await check(submit(batcher, *[number] * size), *[number] * size)
                for _ in range(5 * number):  # the second comes back later
                    await queued()

        gated.release()
        async with device_taken(gated.scheduler):
            clients = asyncio.gather(client(1, 1, 3, 1, 2), client(2, 1, 4, 1, 2))
            await queued()
        await asyncio.wait_for(clients, 60)

    assert [len(batch) for batch in play(scene).batches] == [2, 7, 2, 4]


def test_results_that_do_not_fit_together_fail_their_request_only(caplog: pytest.LogCaptureFixture) -> None:
    def run(batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
        return (np.zeros((len(batch), len(batch))),)  # another shape for every size of a batch

    async def scene() -> None:
        scheduler = Scheduler()
        batcher = Batcher(run, (2,), np.float32, scheduler, max_batch_size=MAX_BATCH_SIZE, observer=Notes())
        await check_error(submit(batcher, *range(12)), ComputeFailed, "log")
        (result,) = await batcher.submit(items(1, 2), RequestContext())
        assert result.shape == (2, 2)
        await batcher.close()
        scheduler.close()

    asyncio.run(scene())
    assert "results of 12 items can't be put together" in caplog.text


@pytest.mark.parametrize("wrong", [np.zeros((0, 2), np.float32), np.zeros((1, 3), np.float32), np.zeros((1, 2))])
def test_items_of_another_kind_are_a_mistake_of_the_caller(wrong: Array) -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        with pytest.raises(ValueError, match=r"items must be n >= 1 of float32 \(2,\)"):
            await batcher.submit(wrong, RequestContext())

    play(scene)


def test_parts_say_which_rows_belong_to_which_tag() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        first = submit(batcher, 1, tag="first")
        await gated.busy()
        others = [submit(batcher, 2, 3, tag="second"), submit(batcher, 4), submit(batcher, *[5] * 6, tag="last")]
        await queued()
        gated.release()
        await asyncio.gather(first, *others)

    assert play(scene).parts == [[("first", 0, 1)], [("second", 0, 2), (None, 2, 3), ("last", 3, 8)], [("last", 0, 1)]]


def test_clients_and_priorities_reach_the_queue() -> None:
    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, *[2] * 40, client="a"), submit(batcher, 3, client="b", priority=-1)]
        tasks += [submit(batcher, 4, client="b"), submit(batcher, 5, client="c", priority=1)]
        await queued()
        gated.release()
        await asyncio.gather(*tasks)

    assert play(scene).batches[1] == [5, 4, *[2] * 6]


def test_an_observer_is_told_what_happens() -> None:
    notes = Notes()

    async def scene(batcher: Batcher, gated: Gated) -> None:
        tasks = [submit(batcher, 1)]
        await gated.busy()
        tasks += [submit(batcher, 2, 3), submit(batcher, 4)]
        await queued()
        assert notes.depths[-1] == 3
        gated.release()
        await asyncio.gather(*tasks)
        await check_error(submit(batcher, 13), ComputeFailed, "log")

    play(scene, observer=notes)
    assert [(size, len(waits)) for size, waits, _ in notes.batches] == [(1, 1), (3, 2)]
    assert all(wait >= 0 for _, waits, seconds in notes.batches for wait in [*waits, seconds])
    assert notes.failures == 1
    assert notes.depths[-1] == 0


def test_nothing_keeps_arrays_of_finished_requests_alive() -> None:
    arrays: list[weakref.ReferenceType[Array]] = []

    def run(batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
        result = batch * 2
        arrays.append(weakref.ref(result))
        return (result,)

    async def scene() -> None:
        scheduler = Scheduler()
        batcher = Batcher(run, (2,), np.float32, scheduler, max_batch_size=MAX_BATCH_SIZE, observer=Notes())

        async def request(count: int) -> None:
            array = items(*range(count))
            arrays.append(weakref.ref(array))
            await batcher.submit(array, RequestContext())

        await asyncio.gather(*(request(count) for count in (1, 2, 8, 20)))
        for _ in range(1000):
            gc.collect()
            if all(array() is None for array in arrays):
                break
            await asyncio.sleep(0.01)  # until the device's thread has let go of its batch
        else:
            pytest.fail("arrays of finished requests are alive")
        await batcher.close()
        scheduler.close()

    asyncio.run(scene())
    assert len(arrays) > 4


def test_a_storm_of_cancelled_requests_mixes_nothing_up() -> None:
    dice = random.Random(0)

    def run(batch: Array, parts: Sequence[Part]) -> tuple[Array, ...]:
        for tag, start, stop in parts:
            assert (batch[start:stop] == tag).all()
        return (batch + 1,)

    async def scene() -> int:
        scheduler = Scheduler()
        batcher = Batcher(
            run, (2,), np.float32, scheduler, max_batch_size=MAX_BATCH_SIZE, observer=Notes(), max_queue=1000
        )
        answered = 0

        async def client(name: int) -> None:
            nonlocal answered
            for index in range(60):
                value, size = name * 100 + index, dice.choice([1, 1, 1, 3, 8, 30])
                task = submit(
                    batcher, *[value] * size, tag=value, client=str(name % 7), priority=dice.choice([-1, 0, 1])
                )
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                if dice.random() < 0.3:
                    task.cancel()
                try:
                    (result,) = await task
                except (asyncio.CancelledError, Overloaded):
                    continue
                np.testing.assert_array_equal(result, items(*[value] * size) + 1)
                answered += 1

        await asyncio.gather(*map(client, range(30)))
        batcher.require_room(1000)
        await batcher.close()
        scheduler.close()
        return answered

    assert asyncio.run(scene()) > 30 * 60 / 2
