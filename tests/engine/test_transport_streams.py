"""Streams: their order, their pace, and their end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from serving import http2
from serving.http2 import WINDOW_BYTES
from wires import (
    Services,
    Wire,
    answers,
    connected,
    echo_all,
    in_loop,
    path,
    quiet_log,  # noqa: F401
    refusal_of,
    served,
    serving,
    stream,
    until,
)

from engine.transport.stream_buffers import MAX_BYTES


@in_loop
async def test_a_stream_keeps_the_order_and_ends_when_the_client_has_said_all() -> None:
    async with served(Echo=stream(echo_all)) as channel:
        sent = [b"%d" % number for number in range(500)]
        call = channel.stream_stream(path("Echo"))(iter(sent))
        assert [answer async for answer in call] == sent
        assert await call.code() is grpc.StatusCode.OK


@in_loop
async def test_a_stream_is_a_conversation() -> None:
    async def handle(_: Any, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message.upper())
        assert await context.read() is grpc.aio.EOF
        await context.write(b"bye")

    async with served(Talk=stream(handle)) as channel:
        call = channel.stream_stream(path("Talk"))()
        for word in (b"one", b"two"):
            await call.write(word)
            assert await call.read() == word.upper()
        await call.done_writing()
        assert await call.read() == b"bye"
        assert await call.read() is grpc.aio.EOF


@in_loop
async def test_one_request_may_have_many_answers() -> None:
    async def generate(request: bytes, _: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def write(request: bytes, context: Any) -> None:
        for number in range(int(request)):
            await context.write(b"%d" % number)

    async with served(Generate=answers(generate), Write=answers(write)) as channel:
        for name in ("Generate", "Write"):
            for count in (0, 1, 100):
                call = channel.unary_stream(path(name))(b"%d" % count)
                assert [answer async for answer in call] == [b"%d" % number for number in range(count)]


@in_loop
async def test_a_status_comes_after_the_answers_before_it() -> None:
    async def handle(_: bytes, context: Any) -> AsyncIterator[bytes]:
        yield bytes(1_000_000)
        yield b"second"
        await context.abort(grpc.StatusCode.DATA_LOSS, "the rest is lost")

    async with served(Ask=answers(handle)) as channel:
        call = channel.unary_stream(path("Ask"))(b"")
        assert await call.read() == bytes(1_000_000)
        assert await call.read() == b"second"
        error = await refusal_of(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "the rest is lost")


@in_loop
async def test_a_client_that_does_not_read_holds_up_the_answers() -> None:
    written = 0

    async def handle(_: bytes, __: Any) -> AsyncIterator[bytes]:
        nonlocal written
        while True:
            written += 1
            yield bytes(10_000)

    ahead = MAX_BYTES / 10_000 + 3  # on its way into core, and asked for by the next turn
    async with serving(Services(Flood=answers(handle)), ("grpc.http2.max_ping_strikes", 0)) as target:
        wire = await Wire.to(target)
        wire.send(http2.call(1, path("Flood")))
        received, window = 0, WINDOW_BYTES
        for _ in range(5):
            while received < window:
                kind, _, _, payload = await wire.receive()
                received += len(payload) if kind == http2.DATA else 0
            for _ in range(20):  # time for a handler that isn't held up
                await wire.until_pong()
            assert written <= window / 10_000 + ahead
            wire.send(http2.window(0, 50_000) + http2.window(1, 50_000))
            window += 50_000
        wire.drop()


@in_loop
async def test_a_server_that_does_not_read_holds_up_the_client() -> None:
    go = asyncio.Event()

    async def handle(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        await go.wait()
        async for request in requests:
            yield b"%d" % len(request)

    async with served(Late=stream(handle)) as channel:
        call = channel.stream_stream(path("Late"))()
        writing = asyncio.ensure_future(_write_all(call, [bytes(1_000_000)] * 20))
        done, _ = await asyncio.wait({writing}, timeout=0.1)
        assert not done
        go.set()
        assert [answer async for answer in call] == [b"1000000"] * 20
        await writing


async def _write_all(call: Any, messages: list[bytes]) -> None:
    for message in messages:
        await call.write(message)
    await call.done_writing()


@in_loop
async def test_a_reader_that_is_cancelled_loses_no_message() -> None:
    waiting = asyncio.Event()

    async def handle(_: Any, context: Any) -> None:
        for _ in range(3):
            reader = asyncio.ensure_future(context.read())
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.wait({reader})
        waiting.set()
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)

    async with served(Talk=stream(handle)) as channel:
        call = channel.stream_stream(path("Talk"))()
        await waiting.wait()
        for word in (b"one", b"two"):
            await call.write(word)
            assert await call.read() == word
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


@in_loop
async def test_a_writer_that_is_cancelled_harms_no_other() -> None:
    cancelled = asyncio.Event()

    async def handle(_: bytes, context: Any) -> None:
        await context.write(bytes(100_000))  # more than the client takes at first
        writer = asyncio.ensure_future(context.write(b"never"))
        await asyncio.sleep(0)
        writer.cancel()
        await asyncio.wait({writer})
        cancelled.set()
        await context.write(b"last")

    async with serving(Services(Ask=answers(handle))) as target:
        wire = await Wire.to(target)
        wire.send(http2.call(1, path("Ask")))
        await cancelled.wait()
        wire.send(http2.window(0, 100_000) + http2.window(1, 100_000))
        frames = await wire.until_answered(1)
        data = b"".join(payload for kind, _, _, payload in frames if kind == http2.DATA)
        assert data == http2.message(bytes(100_000)) + http2.message(b"last")
        assert b"grpc-status\x010" in frames[-1][3]
        wire.drop()


@in_loop
async def test_reads_and_writes_end_when_the_client_has_gone() -> None:
    reading: asyncio.Queue[Any] = asyncio.Queue()
    stopped = asyncio.Event()
    outcomes: list[bool] = []

    async def handle(_: Any, context: Any) -> None:
        reader = asyncio.ensure_future(context.read())
        reading.put_nowait(reader)
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        uses = [reader]
        for _turn in range(2):
            uses += [asyncio.ensure_future(use) for use in (context.read(), context.write(b"a"), context.write(b"b"))]
            await asyncio.wait(uses)
            await stopped.wait()
        outcomes.extend(use.cancelled() for use in uses)

    async with served(Ask=stream(handle)) as channel:
        call = channel.stream_stream(path("Ask"))()
        await call.write(b"first")
        assert await (await reading.get()) == b"first"
        call.cancel()
        call = channel.stream_stream(path("Ask"))()
        await reading.get()
        call.cancel()
    stopped.set()
    await until(lambda: len(outcomes) == 14)
    assert outcomes.count(False) == 1, "other than the message that came"


@pytest.mark.parametrize("way", ["cancel", "connection"])
@in_loop
async def test_a_stream_that_was_cut_off_does_not_look_complete(way: str) -> None:
    outcomes: asyncio.Queue[str] = asyncio.Queue()

    async def handle(requests: AsyncIterator[bytes], context: Any) -> None:
        try:
            async for request in requests:
                await context.write(request)
            outcomes.put_nowait("complete")
        except asyncio.CancelledError:
            outcomes.put_nowait("cancelled")
            raise

    async with serving(Services(Talk=stream(handle))) as target:
        for _ in range(100):  # two things happen at once
            async with connected(target) as channel:
                call = channel.stream_stream(path("Talk"))()
                await call.write(b"hello")
                assert await call.read() == b"hello"
                if way == "cancel":
                    call.cancel()
                else:
                    await channel.close()
                assert await outcomes.get() == "cancelled"


@pytest.mark.parametrize("waits", ["at a write", "at work"])
@in_loop
async def test_the_generator_of_answers_is_closed_when_the_client_goes(waits: str) -> None:
    started, closed = asyncio.Event(), asyncio.Event()
    tasks: list[Any] = []

    async def handle(_: bytes, __: Any) -> AsyncIterator[bytes]:
        tasks.append(asyncio.current_task())
        try:
            while True:
                started.set()
                yield bytes(100_000)
                if waits == "at work":
                    await asyncio.Event().wait()
        finally:
            tasks.append(asyncio.current_task())
            closed.set()

    async with serving(Services(Flood=answers(handle))) as target:
        wire = await Wire.to(target)  # and doesn't read
        wire.send(http2.call(1, path("Flood")))
        await started.wait()
        await wire.until_pong()
        wire.drop()
        await closed.wait()
    assert tasks[0] is tasks[1], "closed by chance, after the call"
