"""Connections that don't speak HTTP/2 or gRPC as they should."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import grpc

from engine.serving.service import SERVICE_NAME
from fuzzing.verdict import leaked

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS = 1, 4
_PATIENCE_S = 0.25
_MANY = 200


class Abuse(NamedTuple):
    """Bytes to send over a connection of their own, which is then dropped."""

    name: str
    data: bytes


def abuses(seed: int) -> Iterator[Abuse]:
    """What is sent; the same for the same seed."""
    draw = random.Random(seed)
    start = _PREFACE + _frame(_SETTINGS, 0, 0)
    yield Abuse("nothing", b"")
    yield Abuse("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    yield Abuse("TLS hello", bytes.fromhex("160301020001000001fc0303") + bytes(500))
    for size in (1, 9, 24, 1000, 100_000):
        yield Abuse("noise", draw.randbytes(size))
        yield Abuse("noise after the preface", start + draw.randbytes(size))
    for cut in (1, 10, 23, 24, 28, 33):
        yield Abuse("half a preface", start[:cut])
    for kind in (*range(12), 255):
        yield Abuse("empty frame", start + _frame(kind, 0, 0) + _frame(kind, 255, 1))
        yield Abuse("odd frame", start + _frame(kind, 0, 7, draw.randbytes(draw.randrange(40))))
        yield Abuse("frame of 16 MiB", start + b"\xff\xff\xff" + bytes([kind, 0, 0, 0, 0, 1]) + bytes(1000))
    yield Abuse("settings", start + _frame(_SETTINGS, 0, 0, struct.pack(">HL", 4, 2**32 - 1)))
    yield Abuse("flood of settings", start + _frame(_SETTINGS, 0, 0) * 5000)
    yield Abuse("flood of pings", start + _frame(_PING, 0, 0, bytes(8)) * 5000)
    yield Abuse("window overflow", start + _frame(_WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 3)
    yield Abuse("window that opens by nothing", start + _opened(1) + _frame(_WINDOW_UPDATE, 0, 1, bytes(4)))
    yield Abuse("flood of windows", start + _opened(1) + _frame(_WINDOW_UPDATE, 0, 1, b"\0\0\0\1") * 5000)
    yield Abuse("more than the window", start + _opened(1) + _frame(_DATA, 0, 1, b"\0\0\x40\0\0" + bytes(16_379)) * 20)
    yield Abuse("flood of empty data", start + _opened(1) + _frame(_DATA, 0, 1) * 5000)
    yield Abuse("windows of no size", start + _frame(_SETTINGS, 0, 0, struct.pack(">HL", 4, 0)) + _call(1))
    yield Abuse("flood of windows of other sizes", start + b"".join(map(_resized, range(2000))) + _call(1))
    yield Abuse("flood of unknown paths", start + b"".join(_opened(n, (":path", f"/{n}")) for n in _odd(500)))
    yield Abuse("rapid reset", start + b"".join(_opened(n) + _frame(_RST_STREAM, 0, n, bytes(4)) for n in _odd(500)))
    yield Abuse("many calls", start + b"".join(_opened(number) for number in _odd(2000)))
    yield Abuse("half a header block", start + _frame(_HEADERS, 0, 1, _block()))
    yield Abuse("long headers", start + _frame(_HEADERS, _END_HEADERS, 1, _block(("a", "b" * 100)) * 100))
    endless = _frame(_CONTINUATION, 0, 1, _block(("a", "b" * 120)) * 100)
    yield Abuse("endless headers", start + _frame(_HEADERS, 0, 1, _block()) + endless * 200)
    for name, headers in _HEADERS_OF_CALLS.items():
        yield Abuse(name, start + _opened(1, *headers) + _frame(_DATA, _END_STREAM, 1, _message(b"")))
    foreign = _opened(1, ("key", "value")).replace(b"key", b"k\xeey")
    yield Abuse("key that isn't UTF-8", start + foreign + _frame(_DATA, _END_STREAM, 1, _message(b"")))
    for name, data in _messages(draw):
        for end in (0, _END_STREAM):
            yield Abuse(name, start + _opened(1) + _frame(_DATA, end, 1, data))
    for _ in range(200):
        good = bytearray(start + _opened(1) + _frame(_DATA, _END_STREAM, 1, _message(b"\x0a\x00")))
        for _ in range(draw.choice((1, 1, 2, 5))):
            # Not above 127: what that may do to a path is `send_foreign_path`'s business.
            good[draw.randrange(len(good))] = draw.randrange(128)
        yield Abuse("a call with bytes changed", bytes(good))


_HEADERS_OF_CALLS: dict[str, tuple[tuple[str, str], ...]] = {
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


def _messages(draw: random.Random) -> Iterator[tuple[str, bytes]]:
    yield "length beyond the data", struct.pack(">BL", 0, 1000) + bytes(10)
    yield "length of 4 GiB", struct.pack(">BL", 0, 2**32 - 1) + bytes(10)
    yield "length below the data", struct.pack(">BL", 0, 1) + bytes(10)
    yield "half a length", b"\0\0\0"
    yield "compressed without encoding", struct.pack(">BL", 1, 10) + draw.randbytes(10)
    yield "unknown flag", struct.pack(">BL", 0x82, 2) + bytes(2)
    yield "two messages", _message(b"") * 2
    yield "no message", b""


async def abuse(target: str, one: Abuse) -> bytes:
    """Sends it, and gives what comes back in a moment."""
    host, _, port = target.rpartition(":")
    answer = bytearray()
    with suppress(OSError, asyncio.TimeoutError):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(one.data)
            await asyncio.wait_for(writer.drain(), _PATIENCE_S)
            while part := await asyncio.wait_for(reader.read(65_536), _PATIENCE_S):
                answer += part
        finally:
            writer.transport.abort()
    return bytes(answer)


async def open_and_drop(target: str, count: int) -> None:
    """Opens so many connections at once, and resets them all."""
    host, _, port = target.rpartition(":")
    opened = await asyncio.gather(
        *(asyncio.open_connection(host, int(port)) for _ in range(count)), return_exceptions=True
    )
    for pair in opened:
        if not isinstance(pair, BaseException):
            sock: socket.socket = pair[1].get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            pair[1].transport.abort()


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _message(data: bytes) -> bytes:
    return struct.pack(">BL", 0, len(data)) + data


def _opened(stream: int, *headers: tuple[str, str]) -> bytes:
    """Headers of a call of Encode, with these instead of or beside the usual ones."""
    usual = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SERVICE_NAME}/Encode",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return _frame(_HEADERS, _END_HEADERS, stream, _block(*(usual | dict(headers)).items()))


def _block(*headers: tuple[str, str]) -> bytes:
    """HPACK without its table: a zero byte, then name and value as they are."""
    return b"".join(b"\0" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v.encode() for n, v in headers)


def _call(stream: int) -> bytes:
    return _opened(stream) + _frame(_DATA, _END_STREAM, stream, _message(b""))


def _resized(size: int) -> bytes:
    return _frame(_SETTINGS, 0, 0, struct.pack(">HL", 4, size))


def _odd(count: int) -> range:
    return range(1, 2 * count, 2)


async def abuse_all(target: str, seed: int) -> tuple[int, list[str]]:
    """Sends everything, a few connections at a time.

    Returns:
        How many connections there were, and what was wrong with the answers.
    """
    faults: list[str] = []
    waiting = abuses(seed)
    count = 0

    async def work() -> None:
        nonlocal count
        for one in waiting:
            count += 1
            answer = await abuse(target, one)
            if secret := leaked(answer.decode("latin-1"), (one.data,)):
                faults.append(f"the answer to {one.name} gives away {secret!r}")

    await asyncio.gather(*(work() for _ in range(16)))
    for _ in range(3):
        await open_and_drop(target, _MANY)
    return count + 3 * _MANY, faults


async def send_foreign_path(target: str) -> list[str]:
    """Sends a call whose path isn't UTF-8; what is wrong when the server takes no connection after it."""
    headers = _opened(1).replace(b".v1.", b".v\xd1.")
    await abuse(target, Abuse("foreign path", _PREFACE + _frame(_SETTINGS, 0, 0) + headers))
    host, _, port = target.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:
        return [f"after a call whose path isn't UTF-8 the server takes no connections: {error.strerror}"]
    writer.close()
    return []


async def send_bombs(target: str) -> list[str]:
    """Sends messages that are far larger than they look; what was wrong with the answers."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    bombs = (
        ("compressed zeros", bytes(2**28), grpc.Compression.Gzip, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("millions of edits", b"\x1a\x00" * 8_000_000, None, grpc.StatusCode.INVALID_ARGUMENT),
    )
    faults = []
    async with grpc.aio.insecure_channel(target, options) as channel:
        call = channel.unary_unary(f"/{SERVICE_NAME}/Edit")
        for name, body, compression, expected in bombs:
            try:
                await call(body, compression=compression, timeout=60)
                faults.append(f"{name} were taken")
            except grpc.aio.AioRpcError as error:
                if error.code() is not expected:
                    faults.append(f"{name} got {error.code().name}: {error.details()}")
    return faults
