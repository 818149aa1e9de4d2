"""Load from this process: prepared requests, unary or on streams, in a closed or an open loop.

gRPC's Python clients take more processor time for a request than the server does, and would be what is measured. Here
requests are HTTP/2 frames that are prepared once, and of answers only lengths and statuses are looked at.
"""

import asyncio
import base64
import struct
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import hpack
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from serving import http2
from serving.figures import Calls
from serving.requests import TIMEOUT_S, Prepared

MAX_CONNECTIONS = 8
REFUSED_STREAM = "REFUSED_STREAM"
"""HTTP/2's refusal of a call that nobody has looked at; gRPC's clients send such a call again by themselves."""

_CREDIT = 2**30
_HEADER_TABLE_SIZE, _MAX_STREAMS, _MAX_FRAME = 1, 3, 5
_REFUSED_STREAM = 7
# A header that isn't in a table and isn't compressed: lengths before name and value.
_OK = b"\x0bgrpc-status\x010"


@dataclass
class Outcome:
    """What became of the requests of one run."""

    # start and latency of those that were answered as they should, seconds
    answered: list[tuple[float, float]] = field(default_factory=list)
    # number of the others by status, or by what was wrong with them
    failures: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[float, float]] = field(default_factory=list)  # start and latency of those that were refused
    # what refusals asked to wait before another try, seconds, as far as they said
    retry_after_s: list[float] = field(default_factory=list)
    # open loop: how late the generator itself was with each request, seconds
    late: list[float] = field(default_factory=list)
    cpu_s: float = 0.0  # processor time that the generator took, seconds

    @property
    def calls(self) -> Calls:
        """Requests that were answered as they should."""
        return Calls.of(self.answered)


@dataclass(slots=True)
class _Call:
    """A call whose answers are not all there."""

    number: int  # of its HTTP/2 stream
    credit: int  # bytes that may be sent
    opened: bool  # whether a stream's opening, if it has one, is answered
    starts: deque[float] = field(default_factory=deque)  # when the messages began that aren't answered, seconds
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))  # what HTTP/2 has no credit for yet
    received: bytearray = field(default_factory=bytearray)  # bytes of an answer that isn't whole
    sizes: list[int] = field(default_factory=list)  # bytes of whole answers


class Connection(asyncio.Protocol):
    """A connection that sends one request again and again, and counts in `outcome` what becomes of it.

    `ended` is called when a request has ended, but not at the connection's own end.
    """

    def __init__(
        self, target: str, prepared: Prepared, outcome: Outcome, ended: Callable[["Connection"], None] = lambda _: None
    ) -> None:
        self.ready = asyncio.get_running_loop().create_future()
        self.closed = False
        self._prepared, self._outcome, self._ended = prepared, outcome, ended
        self._headers = http2.opening(0, prepared.path, authority=target)[9:]
        self._message = memoryview(http2.message(prepared.body))
        self._calls: dict[int, _Call] = {}
        self._sending: dict[int, _Call] = {}  # those with something unsent
        self._held: deque[float] = deque()  # requests that the server has no room for yet
        self._next = 1
        self._credit = self._first_credit = http2.WINDOW_BYTES
        self._max_streams, self._max_frame = 100, http2.FRAME_BYTES
        self._used = 0
        self._in, self._out = bytearray(), list[bytes]()

    @classmethod
    async def to(cls, target: str, *arguments: Any) -> "Connection":
        """Connects, and waits for the server's settings."""
        host, _, port = target.rpartition(":")
        made = partial(cls, target, *arguments)
        _, connection = await asyncio.get_running_loop().create_connection(made, host.strip("[]"), int(port))
        await connection.ready
        return connection

    @property
    def under_way(self) -> int:
        """Requests without an end."""
        return len(self._held) + sum(len(call.starts) for call in self._calls.values())

    def request(self, start: float) -> None:
        """Sends a request, as soon as the server lets it: in a call of its own, or on this connection's stream."""
        if self.closed:
            self._fail("connection closed")
        else:
            self._held.append(start)
            self._send()

    def close(self) -> None:
        """Ends the stream, if this connection has one, and then the connection."""
        for number in self._calls:
            self._out.append(http2.frame(http2.DATA, http2.END_STREAM, number))
        self._send()
        self._transport.close()

    def abort(self) -> None:
        """Aborts the connection."""
        self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        """Sends the preface and settings, with so large a window that answers need not wait for credit."""
        self._transport = transport
        settings = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, http2.INITIAL_WINDOW_SIZE, _CREDIT)
        transport.write(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, settings) + http2.window(0, _CREDIT))

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what was under way."""
        self.closed = True
        lost, self._calls, self._sending = self.under_way, {}, {}
        self._held.clear()
        for _ in range(lost):
            self._fail("connection closed")
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Handles frames, and sends what there is room for now."""
        self._in += data
        for kind, flags, number, payload in http2.frames(self._in):
            self._take(kind, flags, number, payload)
        self._send()

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == http2.DATA:
            self._used += len(payload)
            if self._used > _CREDIT // 2:
                self._out.append(http2.window(0, self._used))
                self._used = 0
            if (call := self._calls.get(number)) is not None:
                call.received += payload
                self._read(call)
        elif kind == http2.HEADERS and flags & http2.END_STREAM:
            self._end(number, payload)
        elif kind == http2.RST_STREAM:
            error = int.from_bytes(payload, "big")
            self._end(number, b"", REFUSED_STREAM if error == _REFUSED_STREAM else f"reset, HTTP/2 error {error}")
        elif kind == http2.WINDOW_UPDATE:
            credit = int.from_bytes(payload, "big")
            if not number:
                self._credit += credit
            elif number in self._calls:
                self._calls[number].credit += credit
        elif kind == http2.PING and not flags & http2.ACK:
            self._out.append(http2.frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.SETTINGS and not flags & http2.ACK:
            self._obey(dict(struct.iter_unpack(">HI", payload)))

    def _obey(self, settings: dict[int, int]) -> None:
        self._max_streams = settings.get(_MAX_STREAMS, self._max_streams)
        self._max_frame = settings.get(_MAX_FRAME, self._max_frame)
        before, self._first_credit = self._first_credit, settings.get(http2.INITIAL_WINDOW_SIZE, self._first_credit)
        for call in self._calls.values():
            call.credit += self._first_credit - before
        self._out.append(http2.frame(http2.SETTINGS, http2.ACK, 0))
        if not self.ready.done():
            self.ready.set_result(None)

    def _read(self, call: _Call) -> None:
        """Takes whole answers out of what has come."""
        while len(call.received) >= 5 and len(call.received) >= 5 + (size := int.from_bytes(call.received[1:5], "big")):
            del call.received[: 5 + size]
            if not self._prepared.stream:
                call.sizes.append(size)
            elif not call.opened:
                call.opened = True
                self._queue(call, bytes(self._message) * len(call.starts))
            elif call.starts:
                self._answered(call.starts.popleft(), [size])

    def _answered(self, start: float, sizes: list[int]) -> None:
        if sizes == [self._prepared.answer_bytes]:
            self._outcome.answered.append((start, time.perf_counter() - start))
            self._ended(self)
        else:
            self._fail("wrong length")

    def _end(self, number: int, trailers: bytes, broken: str = "") -> None:
        call = self._calls.pop(number, None)
        self._sending.pop(number, None)
        if call is None:
            return
        if not broken and _OK in trailers:
            for start in call.starts:  # of a stream: those whose answers will never come
                self._answered(start, call.sizes)
            return
        if not broken:
            broken, waits = _read_status(trailers)
            self._outcome.retry_after_s += waits
            self._outcome.refused += [(start, time.perf_counter() - start) for start in call.starts]
        for _ in call.starts:
            self._fail(broken)

    def _fail(self, why: str) -> None:
        self._outcome.failures[why] += 1
        if not self.closed:
            self._ended(self)

    def _queue(self, call: _Call, data: bytes | memoryview) -> None:
        call.unsent = memoryview(bytes(call.unsent) + data if call.unsent else data)
        self._sending[call.number] = call

    def _open(self) -> _Call:
        opening = self._prepared.opening
        call = self._calls[self._next] = _Call(self._next, self._first_credit, opened=opening is None)
        self._next += 2
        self._out.append(http2.frame(http2.HEADERS, http2.END_HEADERS, call.number, self._headers))
        if opening is not None:
            self._queue(call, http2.message(opening))
        return call

    def _send(self) -> None:
        """Takes up requests and sends parts of messages, as far as the server's limits allow."""
        stream = self._prepared.stream
        while self._held and (stream or len(self._calls) < self._max_streams):
            call = next(iter(self._calls.values())) if stream and self._calls else self._open()
            call.starts.append(self._held.popleft())
            if call.opened:
                self._queue(call, self._message)
        for number, call in list(self._sending.items()) if self._credit > 0 else ():
            while call.unsent and (size := min(len(call.unsent), self._max_frame, self._credit, call.credit)) > 0:
                part, call.unsent = call.unsent[:size], call.unsent[size:]
                self._credit -= size
                call.credit -= size
                last = not (stream or call.unsent)
                self._out.append(http2.frame(http2.DATA, http2.END_STREAM if last else 0, number, part))
            if not call.unsent:
                del self._sending[number]
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()


async def closed_loop(target: str, prepared: Prepared, in_flight: int, seconds: float) -> Outcome:
    """Keeps `in_flight` requests under way for `seconds`, over several connections; then waits for the last answers."""
    outcome = Outcome()
    until = float("inf")

    def again(connection: Connection) -> None:
        if (now := time.perf_counter()) < until:
            asyncio.get_running_loop().call_soon(connection.request, now)

    async with _connected(target, prepared, outcome, min(in_flight, MAX_CONNECTIONS), again) as opened:
        until = time.perf_counter() + seconds
        for number in range(in_flight):
            opened[number % len(opened)].request(time.perf_counter())
        await asyncio.sleep(seconds)
    return outcome


async def open_loop(target: str, prepared: Prepared, rate: float, seconds: float) -> Outcome:
    """Sends `rate` requests a second at random times (Poisson arrivals), whether or not earlier ones are answered.

    Latency counts from the time that a request was meant to leave, so that neither a slow server nor a slow
    generator hides waiting. What the generator itself was late is told apart.
    """
    outcome = Outcome()
    gaps = np.random.default_rng(0).exponential(1 / rate, max(1, round(rate * seconds)))
    async with _connected(target, prepared, outcome, MAX_CONNECTIONS) as opened:
        for number, intended in enumerate((time.perf_counter() + np.cumsum(gaps)).tolist()):
            await asyncio.sleep(max(0.0, intended - time.perf_counter()))  # reads answers, too
            outcome.late.append(max(0.0, time.perf_counter() - intended))
            opened[number % len(opened)].request(intended)
    return outcome


@asynccontextmanager
async def _connected(
    target: str, prepared: Prepared, outcome: Outcome, number: int, *ended: Callable[[Connection], None]
) -> AsyncIterator[list[Connection]]:
    """So many connections, which are closed when the last answers are there, and the processor time that all took."""
    opened = [await Connection.to(target, prepared, outcome, *ended) for _ in range(number)]
    cpu = time.process_time()
    yield opened
    until = time.perf_counter() + TIMEOUT_S
    while (left := sum(connection.under_way for connection in opened)) and time.perf_counter() < until:
        await asyncio.sleep(0.005)
    outcome.failures += Counter({"no answer": left})
    for connection in opened:
        connection.close()
    outcome.cpu_s = time.process_time() - cpu


def _read_status(trailers: bytes) -> tuple[str, list[float]]:
    """What to call a refusal, and the times after which it asks to try again, seconds."""
    fields = dict(hpack.Decoder().decode(trailers, raw=True))
    code = int(fields.get(b"grpc-status", b"2"))
    name = next(status.name for status in grpc.StatusCode if status.value[0] == code)
    waits = []
    encoded = fields.get(b"grpc-status-details-bin", b"")
    for detail in status_pb2.Status.FromString(base64.b64decode(encoded + b"=" * (-len(encoded) % 4))).details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            waits.append(info.retry_delay.ToTimedelta().total_seconds())
    # Only a full queue is a refusal with a name; of all else, the reason is needed.
    said = unquote(fields.get(b"grpc-message", b"").decode())
    return (name if name == "RESOURCE_EXHAUSTED" else f"{name}: {said}"), waits
