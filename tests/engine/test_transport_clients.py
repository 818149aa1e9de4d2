"""Clients that go away, and many at once."""

import asyncio
import gc
import itertools
import os
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from typing import Any

import grpc
import pytest
from serving import http2
from wires import (
    LIMIT_S,
    OWN_CONNECTION,
    Held,
    Services,
    Wire,
    connected,
    echo,
    echo_all,
    in_loop,
    path,
    quiet_log,  # noqa: F401
    refusal_of,
    served,
    serving,
    stream,
    unary,
    until,
)

from engine.transport.core import CoreCall
from engine.transport.permit import Permit, Unlimited
from engine.transport.server import Ending

# Clients that go away.


@pytest.mark.parametrize("way", ["cancel", "deadline", "connection"])
@in_loop
async def test_a_handler_is_cancelled_when_its_client_goes(way: str) -> None:
    held, other = Held(), Held()
    services = Services(Held=unary(held), Other=unary(other), Echo=unary(echo))
    async with serving(services) as target, connected(target) as channel, connected(target) as leaving:
        staying = asyncio.ensure_future(channel.unary_unary(path("Other"))(b"still here"))
        await other.started.acquire()
        call = leaving.unary_unary(path("Held"))(b"", timeout=0.3 if way == "deadline" else None)
        waiting = asyncio.ensure_future(call)
        await held.started.acquire()
        if way == "cancel":
            call.cancel()
        elif way == "connection":
            await leaving.close()
        await held.cancelled.acquire()
        assert await channel.unary_unary(path("Echo"))(b"a") == b"a"
        other.go.set()
        assert await staying == b"still here"
        assert other.cancelled.locked()
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await waiting


@in_loop
async def test_a_call_that_was_reset_gets_no_status() -> None:
    held = Held()
    async with serving(Services(Held=unary(held))) as target:
        wire = await Wire.to(target)
        wire.send(http2.call(1, path("Held")))
        await held.started.acquire()
        wire.send(http2.cancel(1))
        await held.cancelled.acquire()
        assert [frame for frame in await wire.until_pong() if frame[2] == 1] == []
        wire.drop()


@in_loop
async def test_a_connection_that_breaks_cancels_all_its_calls() -> None:
    held = Held()
    async with serving(Services(Held=unary(held))) as target:
        wire = await Wire.to(target)
        wire.send(b"".join(http2.call(number, path("Held")) for number in range(1, 100, 2)))
        for _ in range(50):
            await held.started.acquire()
        wire.drop()
        for _ in range(50):
            await held.cancelled.acquire()


class _Counted(Unlimited):
    """Leaves a set when its call does."""

    def __init__(self, inside: "set[_Counted]") -> None:
        self._inside = inside
        inside.add(self)

    def release(self) -> None:
        self._inside.discard(self)


@in_loop
async def test_a_call_that_was_cancelled_before_its_first_step_is_not_begun_and_leaves() -> None:
    held = Held()
    inside: set[_Counted] = set()
    services = Services(Held=unary(held), Echo=unary(echo))
    async with serving(services, admit=lambda _: _Counted(inside)) as target, connected(target) as channel:
        with closing(socket.create_connection(("127.0.0.1", int(target.rsplit(":", 1)[1])))) as wire:
            # The event loop stands still until the server has seen what was sent later on that connection.
            wire.sendall(http2.START)
            numbers = itertools.count(1, 2)
            calls = list(itertools.islice(numbers, 50))
            opened = b"".join(http2.call(call, path("Held")) for call in calls)
            for frames in (opened, b"".join(map(http2.cancel, calls))):
                wire.sendall(frames)
                for number in itertools.islice(numbers, 2):
                    wire.sendall(http2.call(number, b"/%d" % number))
                    assert services.unknown.acquire(timeout=LIMIT_S)
            assert await channel.unary_unary(path("Echo"))(b"a") == b"a"
            await until(lambda: not inside)
    assert held.calls == 0


@in_loop
async def test_a_call_that_never_brings_its_message_ends_with_its_connection() -> None:
    held = Held()
    services = Services(Held=unary(held), Echo=unary(echo))
    async with serving(services) as target, connected(target) as channel:
        wire = await Wire.to(target)
        wire.send(http2.opening(1, path("Held")))
        await wire.until_pong()
        wire.drop()
        assert await channel.unary_unary(path("Echo"))(b"a") == b"a"
    assert held.calls == 0


@in_loop
async def test_a_handler_may_take_its_time_to_clean_up() -> None:
    cleaned = asyncio.Event()
    started = asyncio.Event()

    async def handle(_: bytes, __: Any) -> bytes:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            cleaned.set()
        return b"too late"

    async with served(Ask=unary(handle)) as channel:
        call = channel.unary_unary(path("Ask"))(b"")
        await started.wait()
        call.cancel()
        await cleaned.wait()


# Many at once.


@in_loop
async def test_hundreds_of_calls_get_each_its_own_answer() -> None:
    async def reverse(request: bytes, _: Any) -> bytes:
        await asyncio.sleep(0)
        return request[::-1]

    async with serving(Services(Reverse=unary(reverse), Echo=stream(echo_all))) as target:

        async def ask(channel: grpc.aio.Channel, body: bytes) -> None:
            if body[0] % 4:
                assert await channel.unary_unary(path("Reverse"))(body) == body[::-1]
            else:
                call = channel.stream_stream(path("Echo"))(iter([body, body[1:]]))
                assert [answer async for answer in call] == [body, body[1:]]

        channels = [connected(target) for _ in range(8)]
        await asyncio.gather(*(ask(channels[n % 8], os.urandom(1 + n)) for n in range(800)))
        await asyncio.gather(*(ask(channels[n % 8], os.urandom(2**20)) for n in range(24)))
        await asyncio.gather(*(channel.close() for channel in channels))


@in_loop
async def test_answers_go_on_while_others_are_given_up() -> None:
    held = Held()
    services = Services(Held=unary(held), Echo=unary(echo))
    async with serving(services) as target, connected(target) as channel, connected(target) as other:
        doomed = [channel.unary_unary(path("Held"))(b"") for _ in range(300)]
        for call in doomed:
            asyncio.ensure_future(call.wait_for_connection())  # noqa: RUF006
        bodies = [os.urandom(100) for _ in range(300)]
        asked = asyncio.gather(*(other.unary_unary(path("Echo"))(body) for body in bodies))
        for call in doomed[::2]:
            call.cancel()
        assert await asked == bodies
        held.go.set()
        assert await asyncio.gather(*doomed[1::2]) == [b""] * 150


@in_loop
async def test_no_call_is_kept_after_its_end() -> None:
    contexts: list[weakref.ref[Any]] = []
    started = asyncio.Semaphore(0)

    async def handle(request: bytes, context: Any) -> bytes:
        contexts.append(weakref.ref(context))
        if request == b"abort":
            await context.abort(grpc.StatusCode.ABORTED, "no")
        if request == b"wait":
            started.release()
            await asyncio.Event().wait()
        return request

    async def talk(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        contexts.append(weakref.ref(context))
        async for request in requests:
            yield request

    async with serving(Services(Ask=unary(handle), Talk=stream(talk))) as target, connected(target) as channel:
        ask = channel.unary_unary(path("Ask"))
        assert await ask(b"a") == b"a"
        await refusal_of(ask(b"abort"))
        call: Any = ask(b"wait")
        await started.acquire()
        call.cancel()
        call = channel.stream_stream(path("Talk"))(iter([b"a", b"b"]))
        assert [answer async for answer in call] == [b"a", b"b"]
        call = channel.stream_stream(path("Talk"))()
        await call.write(b"a")
        assert await call.read() == b"a"
        call.cancel()
        gc.disable()  # they are to go by themselves
        try:
            await until(lambda: all(context() is None for context in contexts))
        finally:
            gc.enable()
    assert len(contexts) == 5


class Blocker:
    """A handler that keeps the event loop from everything else until it is let go."""

    def __init__(self) -> None:
        self.blocks = threading.Event()
        self._go = threading.Event()

    async def __call__(self, request: bytes, _: Any) -> bytes:
        self.blocks.set()
        assert self._go.wait(LIMIT_S)
        return request

    def close(self) -> None:
        """Lets it go."""
        self._go.set()


@in_loop
async def test_calls_are_answered_while_the_event_loop_stands_still_now_and_then() -> None:
    async def stand_still(request: bytes, _: Any) -> bytes:
        time.sleep(0.03)
        return request

    def client(target: str) -> None:
        with grpc.insecure_channel(target, [OWN_CONNECTION]) as channel:
            ask, hold = channel.unary_unary(path("Echo")), channel.unary_unary(path("StandStill"))
            talk = channel.stream_stream(path("Talk"))
            for burst in range(10):
                bodies = [b"%d %d" % (burst, number) for number in range(100)]
                held = hold.future(b"held", timeout=LIMIT_S)
                calls = [ask.future(body, timeout=LIMIT_S) for body in bodies]
                assert list(talk(iter(bodies), timeout=LIMIT_S)) == bodies
                assert [call.result() for call in calls] == bodies
                assert held.result() == b"held"

    services = Services(Echo=unary(echo), StandStill=unary(stand_still), Talk=stream(echo_all))
    async with serving(services) as target:
        await asyncio.gather(*(asyncio.to_thread(client, target) for _ in range(3)))


def _judge(call: CoreCall) -> Permit | Ending:
    if ("permit", "none") not in call.metadata:
        return Unlimited()
    return grpc.StatusCode.RESOURCE_EXHAUSTED, "come back later", (("retry-after-ms", "7"), ("why-bin", b"\xff"))


def _was_refused(call: Any) -> bool:
    if call.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return False
    assert call.details() == "come back later"
    assert dict(call.trailing_metadata()) == {"retry-after-ms": "7", "why-bin": b"\xff"}
    return True


@in_loop
async def test_calls_are_refused_beside_an_event_loop_that_stands_still() -> None:
    blocker = Blocker()
    services = Services(Block=unary(blocker), Echo=unary(echo))

    def client(target: str) -> None:
        """Runs beside the event loop."""
        with grpc.insecure_channel(target, [OWN_CONNECTION]) as channel, closing(blocker):
            ask = channel.unary_unary(path("Echo"))
            early = [ask.future(b"early", timeout=LIMIT_S) for _ in range(50)]
            assert [call.result() for call in early] == [b"early"] * 50
            blocked = channel.unary_unary(path("Block")).future(b"a", timeout=LIMIT_S)
            assert blocker.blocks.wait(LIMIT_S)
            late = ask.future(b"late", timeout=LIMIT_S)
            calls = [ask.future(b"a", metadata=(("permit", "none"),), timeout=LIMIT_S) for _ in range(100)]
            assert all(call.exception() is call and _was_refused(call) for call in calls)
            assert not any(call.done() for call in (blocked, late))
            blocker.close()
            assert (blocked.result(), late.result()) == (b"a", b"late")

    async with serving(services, admit=_judge) as target:
        await asyncio.to_thread(client, target)
