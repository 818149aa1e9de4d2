"""Which calls are admitted, and when core is asked for their messages."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.access.admission import Admission, CallPermit, Limits, window_of
from engine.errors import Overloaded

MESSAGE_BYTES = 1_000_000
METHOD = "/dfcvae.v1.LatentEngine/Edit"
FEW_BYTES = Limits(
    calls=100,
    streams=10,
    bytes=8 * MESSAGE_BYTES,  # 6 of them for messages
    message_bytes=MESSAGE_BYTES,
    window_bytes=window_of(8 * MESSAGE_BYTES),
)
MANY_BYTES = replace(FEW_BYTES, bytes=2**30, window_bytes=window_of(2**30))


def test_many_calls_may_wait_for_room_however_few_bytes_there_are() -> None:
    sizes = {bytes_: window_of(bytes_) for bytes_ in (2**20, 2**28, 2**29, 2**30, 2**31, 2**34)}
    assert sizes == {2**20: 65_535, 2**28: 65_535, 2**29: 2**16, 2**30: 2**17, 2**31: 2**18, 2**34: 2**18}


class Calls:
    """Calls of an admission, which remembers whose messages core was asked for."""

    def __init__(self, limits: Limits) -> None:
        self.now = 0.0
        self.admission = Admission(limits, lambda: self.now)
        self.admission.open()
        self.asked: list[str] = []

    def enter(self, client: str) -> CallPermit:
        permit = self.admission.admit(client)
        permit.receive_when_room(lambda: self.asked.append(client))
        return permit


def play(scene: Callable[[Calls], None], limits: Limits = FEW_BYTES) -> None:
    async def run() -> None:
        calls = Calls(limits)
        scene(calls)
        assert vars_of(calls.admission.total) == [0] * 6

    asyncio.run(run())


def vars_of(usage: object) -> list[int]:
    return [getattr(usage, name) for name in ("bytes", "calls", "reserved", "streams", "waiting", "windows")]


def release(*permits: CallPermit) -> None:
    for permit in permits:
        permit.release()
        permit.release()  # it may be told so twice


def test_a_client_that_never_sends_its_messages_leaves_room_for_those_of_others() -> None:
    def scene(calls: Calls) -> None:
        greedy = [calls.enter("greedy") for _ in range(10)]
        assert calls.asked == ["greedy"] * 4
        held = calls.enter("other")
        held.received(50)
        others = [calls.enter("other"), calls.enter("third")]
        assert calls.asked == ["greedy"] * 4 + ["other", "other"], "the third client waits for the next place"
        release(others[0])
        assert calls.asked[6:] == ["third"]
        release(held, *others, *greedy)

    play(scene)


def test_who_waits_for_room_gets_it_by_turns() -> None:
    def scene(calls: Calls) -> None:
        first = [calls.enter("a") for _ in range(4)]
        waiting = [calls.enter(client) for client in "aaabbb"]
        assert calls.asked == list("aaaabb")
        release(*first)
        assert calls.asked[6:] == list("aba")
        release(waiting[2])  # the only one that still waits
        release(*waiting)
        assert len(calls.asked) == 9

    play(scene)


def test_behind_a_long_line_before_a_late_event_loop_calls_are_refused_but_for_clients_with_few() -> None:
    def scene(calls: Calls) -> None:
        permits = [calls.enter("greedy") for _ in range(80)]
        for permit in permits[:16]:
            permit.received(1)
        calls.now += 0.3
        permits.append(calls.enter("greedy"))  # so few could not hold up the loop: the machine did
        for permit in permits[16:]:
            permit.received(1)
        with pytest.raises(Overloaded, match="more calls come than the server can look at"):
            calls.enter("greedy")
        permits.append(calls.enter("other"))
        for permit in permits:
            permit.started()
        permits.append(calls.enter("greedy"))
        release(*permits)

    play(scene, MANY_BYTES)


def test_a_client_whose_queue_was_full_is_refused_while_what_it_has_under_way_fills_it() -> None:
    def scene(calls: Calls) -> None:
        room = 3

        def recheck(before: int) -> None:
            if before >= room:
                raise Overloaded("the queue is full")

        permits = [calls.enter("a") for _ in range(4)]
        permits[0].usage.overloaded[METHOD] = recheck
        for permit in permits[:2]:
            permit.received(1)
        permits.append(calls.admission.admit("a", METHOD))
        permits[2].received(1)
        with pytest.raises(Overloaded, match="the queue is full"):
            calls.admission.admit("a", METHOD)
        permits += [calls.admission.admit("a", "/of/another/queue"), calls.admission.admit("b", METHOD)]
        permits[0].started()
        permits.append(calls.admission.admit("a", METHOD))
        release(*permits)

    play(scene, MANY_BYTES)


def test_a_message_that_does_not_fit_any_more_is_refused() -> None:
    def scene(calls: Calls) -> None:
        permits = [calls.enter("a") for _ in range(8)]
        for permit in permits:
            permit.received(MESSAGE_BYTES)
        assert [permit.refusal is not None for permit in permits] == [False] * 5 + [True] * 3
        release(*permits)

    play(scene)


def test_as_many_streams_may_be_idle_as_the_limit_of_streams_says() -> None:
    def scene(calls: Calls) -> None:
        streams = [calls.admission.admit(f"client {number % 4}", stream=True) for number in range(1000)]
        asked: list[CallPermit] = []
        for permit in streams:
            permit.receive_when_room(lambda permit=permit: asked.append(permit))  # type: ignore[misc]
        assert asked == streams
        other = calls.enter("other")
        assert calls.asked == ["other"]
        release(*streams, other)

    play(scene, replace(MANY_BYTES, calls=2000, streams=1200, bytes=2**28))
