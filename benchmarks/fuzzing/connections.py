"""Connections that don't speak HTTP/2 or gRPC as they should."""

import asyncio
import random
import struct
from collections.abc import Iterator
from contextlib import suppress

import grpc
from serving import http2
from serving.http2 import START, block, call, frame, message, opening
from serving.requests import OPTIONS

from fuzzing.answers import leaked

_ENCODE, _EDIT = "/dfcvae.v1.LatentEngine/Encode", "/dfcvae.v1.LatentEngine/Edit"
_READ_S = 0.25
_MANY = 200
_HEADERS: dict[str, tuple[tuple[str, str], ...]] = {
    "deadline that is no number": (("grpc-timeout", "soon"),),
    "negative deadline": (("grpc-timeout", "-1S"),),
    "endless deadline": (("grpc-timeout", "99999999H"),),
    "unknown encoding": (("grpc-encoding", "shrunk"),),
    "encoding without compression": (("grpc-encoding", "gzip"),),
    "binary key that isn't base64": (("grpc-status-details-bin", "!!!"), ("x-bin", "\x01\x02")),
    "bytes in a request id": (("x-request-id", "a\r\nb\0\x7f"),),
    "second path": ((":path", "/a/b"), (":method", "GET")),
    "connection header": (("connection", "close"), ("transfer-encoding", "chunked")),
    "wrong content type": (("content-type", "text/plain"),),
}


def abuses(seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of what is sent, each over a connection of its own; the same for the same seed."""
    draw = random.Random(seed)
    yield "nothing", b""
    yield "HTTP/1.1", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    yield "TLS hello", bytes.fromhex("160301020001000001fc0303") + bytes(500)
    for size in (1, 9, 24, 1000, 100_000):
        yield "noise", draw.randbytes(size)
        yield "noise after the preface", START + draw.randbytes(size)
    for cut in (1, 10, 23, 24, 28, 33):
        yield "half a preface", START[:cut]
    for kind in (*range(12), 255):
        yield "empty frame", START + frame(kind, 0, 0) + frame(kind, 255, 1)
        yield "odd frame", START + frame(kind, 0, 7, draw.randbytes(draw.randrange(40)))
        yield "frame of 16 MiB", START + b"\xff\xff\xff" + bytes([kind, 0, 0, 0, 0, 1]) + bytes(1000)
    yield "settings", START + frame(http2.SETTINGS, 0, 0, struct.pack(">HL", 4, 2**32 - 1))
    yield "flood of settings", START + frame(http2.SETTINGS, 0, 0) * 5000
    yield "flood of pings", START + frame(http2.PING, 0, 0, bytes(8)) * 5000
    yield "window overflow", START + frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 3
    opened = [(number, opening(number, _ENCODE)) for number in range(1, 4000, 2)]
    first = START + opened[0][1]
    yield "window that opens by nothing", first + frame(http2.WINDOW_UPDATE, 0, 1, bytes(4))
    yield "flood of windows", first + frame(http2.WINDOW_UPDATE, 0, 1, b"\0\0\0\1") * 5000
    yield "more than the window", first + frame(http2.DATA, 0, 1, b"\0\0\x40\0\0" + bytes(16_379)) * 20
    yield "flood of empty data", first + frame(http2.DATA, 0, 1) * 5000
    sizes = [frame(http2.SETTINGS, 0, 0, struct.pack(">HL", 4, size)) for size in range(2000)]
    yield "windows of no size", START + sizes[0] + call(1, _ENCODE, b"")
    yield "flood of windows of other sizes", START + b"".join(sizes) + call(1, _ENCODE, b"")
    paths = (opening(number, f"/{number}") for number, _ in opened[:500])
    yield "flood of unknown paths", START + b"".join(paths)
    yield "rapid reset", START + b"".join(one + http2.cancel(number) for number, one in opened[:500])
    yield "many calls", START + b"".join(one for _, one in opened)
    yield "half a header block", START + frame(http2.HEADERS, 0, 1, opened[0][1][9:])
    yield "long headers", START + frame(http2.HEADERS, http2.END_HEADERS, 1, block(("a", "b" * 100)) * 100)
    endless = frame(http2.CONTINUATION, 0, 1, block(("a", "b" * 120)) * 100)
    yield "endless headers", START + frame(http2.HEADERS, 0, 1, opened[0][1][9:]) + endless * 200
    for name, headers in _HEADERS.items():
        yield name, START + call(1, _ENCODE, b"", *headers)
    yield "key that isn't UTF-8", START + call(1, _ENCODE, b"", (b"k\xeey", b"value"))
    for name, data in (
        ("length beyond the data", struct.pack(">BL", 0, 1000) + bytes(10)),
        ("length of 4 GiB", struct.pack(">BL", 0, 2**32 - 1) + bytes(10)),
        ("length below the data", struct.pack(">BL", 0, 1) + bytes(10)),
        ("half a length", b"\0\0\0"),
        ("compressed without encoding", struct.pack(">BL", 1, 10) + draw.randbytes(10)),
        ("unknown flag", struct.pack(">BL", 0x82, 2) + bytes(2)),
        ("two messages", message(b"") * 2),
        ("no message", b""),
    ):
        for end in (0, http2.END_STREAM):
            yield name, first + frame(http2.DATA, end, 1, data)
    for _ in range(200):
        good = bytearray(START + call(1, _ENCODE, b"\x0a\x00"))
        for _ in range(draw.choice((1, 1, 2, 5))):
            # Not above 127: what that may do to a path is `send_foreign_path`'s business.
            good[draw.randrange(len(good))] = draw.randrange(128)
        yield "a call with bytes changed", bytes(good)


async def _abuse(target: str, data: bytes) -> bytes:
    """Sends bytes over a connection, and drops it. Returns what came back in a moment."""
    answer = bytearray()
    with suppress(OSError, asyncio.TimeoutError):
        reader, writer = await asyncio.open_connection(*target.rsplit(":", 1))
        try:
            writer.write(data)
            await asyncio.wait_for(writer.drain(), _READ_S)
            while part := await asyncio.wait_for(reader.read(65_536), _READ_S):
                answer += part
        finally:
            writer.transport.abort()
    return bytes(answer)


async def abuse_all(target: str, seed: int) -> tuple[int, list[str]]:
    """Sends everything, some connections at a time; then opens many at once and drops them, several times.

    Returns how many connections there were, and what was wrong with the answers.
    """
    faults: list[str] = []
    room = asyncio.Semaphore(16)

    async def send(name: str, data: bytes) -> None:
        async with room:
            answer = await _abuse(target, data)
        if secret := leaked(answer.decode("latin-1"), (data,)):
            faults.append(f"the answer to {name} gives away {secret!r}")

    sent = [*abuses(seed)]
    await asyncio.gather(*(send(name, data) for name, data in sent))
    for _ in range(3):
        opened = (asyncio.open_connection(*target.rsplit(":", 1)) for _ in range(_MANY))
        for pair in await asyncio.gather(*opened, return_exceptions=True):
            if not isinstance(pair, BaseException):
                pair[1].transport.abort()
    return len(sent) + 3 * _MANY, faults


async def send_foreign_path(target: str) -> list[str]:
    """Sends a call whose path isn't UTF-8. Returns what is wrong if the server takes no connection after it."""
    await _abuse(target, START + opening(1, _ENCODE.encode().replace(b".v1.", b".v\xd1.")))
    try:
        _, writer = await asyncio.open_connection(*target.rsplit(":", 1))
    except OSError as error:
        return [f"after a call whose path isn't UTF-8 the server takes no connections: {error.strerror}"]
    writer.close()
    return []


async def send_bombs(target: str) -> list[str]:
    """Sends messages that are far larger than they look. Returns what was wrong with the answers."""
    bombs = (
        ("compressed zeros", bytes(2**28), grpc.Compression.Gzip, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("millions of edits", b"\x1a\x00" * 8_000_000, None, grpc.StatusCode.INVALID_ARGUMENT),
    )
    faults = []
    async with grpc.aio.insecure_channel(target, OPTIONS) as channel:
        edit = channel.unary_unary(_EDIT)
        for name, body, compression, expected in bombs:
            try:
                await edit(body, compression=compression, timeout=60)
                faults.append(f"{name} were taken")
            except grpc.aio.AioRpcError as error:
                if error.code() is not expected:
                    faults.append(f"{name} got {error.code().name}: {error.details()}")
    return faults
