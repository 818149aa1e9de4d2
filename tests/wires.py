"""Servers on gRPC's core for tests, clients that speak HTTP/2 frame by frame, and what tests of both share."""

import asyncio
import functools
import gc
import logging
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from serving import http2

from engine.transport import Server
from engine.transport.core import CoreCall
from engine.transport.permit import Permit, Unlimited
from engine.transport.server import Ending

# No test waits as long, unless something is broken.
LIMIT_S = 30.0
SERVICE = "test.Service"
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)

Test = Callable[..., Awaitable[None]]


def in_loop(test: Test) -> Callable[..., None]:
    """A test that runs on an event loop of its own, and not for ever."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **options), LIMIT_S))

    return run


@pytest.fixture(autouse=True, name="log")
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What was logged; nothing may be left there at the end, from the server or from the event loop.

    Watches the tests of each module that imports it.
    """
    yield caplog
    gc.collect()  # asyncio logs what was lost when it is freed
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


class Services:
    """Handlers by name; counts the calls of others."""

    def __init__(self, **handlers: Any) -> None:
        self.handlers = handlers
        self.unknown = threading.Semaphore(0)


def unary(function: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(function)


def answers(function: Any) -> Any:
    return grpc.unary_stream_rpc_method_handler(function)


def stream(function: Any) -> Any:
    return grpc.stream_stream_rpc_method_handler(function)


async def echo(request: bytes, _: Any) -> bytes:
    return request


async def echo_all(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


class Held:
    """A handler that waits until it is let go, and tells what becomes of it."""

    def __init__(self) -> None:
        self.started = asyncio.Semaphore(0)
        self.cancelled = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.calls = 0

    async def __call__(self, request: bytes, _: Any) -> bytes:
        self.calls += 1
        self.started.release()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.release()
            raise
        return request


def _let_in(_: CoreCall) -> Permit | Ending:
    return Unlimited()


@asynccontextmanager
async def serving(
    services: Services, *options: tuple[str, int], admit: Callable[[CoreCall], Permit | Ending] = _let_in
) -> AsyncIterator[str]:
    """The address of a server of these; it is stopped at the end."""
    server = Server([("grpc.so_reuseport", 0), *options], admit, unknown=services.unknown.release)
    server.add_service(SERVICE, services.handlers)
    port = server.listen("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def served(*options: tuple[str, int], **handlers: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to a server of these handlers."""
    async with serving(Services(**handlers), *options) as target, connected(target) as channel:
        yield channel


def connected(target: str, *options: tuple[str, Any]) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, [OWN_CONNECTION, *options])


def path(name: str) -> str:
    return f"/{SERVICE}/{name}"


async def refusal_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what comes true by itself; the test's limit ends it where it doesn't."""
    while not condition():
        await asyncio.sleep(0.002)


NO_WINDOW = http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HL", http2.INITIAL_WINDOW_SIZE, 0))
"""Settings of a client that takes no answers for now."""


class Wire:
    """A connection that speaks HTTP/2 frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, target: str, source: str = "127.0.0.1") -> "Wire":
        wire = cls(*await asyncio.open_connection(*target.rsplit(":", 1), local_addr=(source, 0)))
        wire.send(http2.START)
        return wire

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def receive(self) -> tuple[int, int, int, bytes]:
        """The next frame: kind, flags, number of the stream, payload."""
        head = await self._reader.readexactly(9)
        payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        return head[3], head[4], int.from_bytes(head[5:], "big"), payload

    async def until_answered(self, number: int) -> list[tuple[int, int, int, bytes]]:
        """The frames of a stream, to its last."""
        frames: list[tuple[int, int, int, bytes]] = []
        while not frames or not frames[-1][1] & http2.END_STREAM:
            frame = await self.receive()
            if frame[2] == number and frame[0] in (http2.DATA, http2.HEADERS):
                frames.append(frame)
        return frames

    async def until_pong(self) -> list[tuple[int, int, int, bytes]]:
        """Asks the server for a sign of life; what came before it."""
        self.send(http2.frame(http2.PING, 0, 0, b"are you?"))
        frames = []
        while (frame := await self.receive())[0] != http2.PING or not frame[1]:
            frames.append(frame)
        return frames

    def drop(self) -> None:
        self._writer.transport.abort()
