"""Unary load in an open loop: requests leave at random times, whether or not earlier ones are answered.

Python's gRPC clients take more processor time for a request than the server does, and would be what is measured. Here
requests are prepared HTTP/2 frames, and of answers only lengths and statuses are looked at.
"""

from __future__ import annotations

import base64
import selectors
import socket
import struct
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

import grpc
import hpack
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from serving.bodies import Prepared
from serving.figures import Calls
from serving.process import ScriptError
from serving.unary import MAX_CONNECTIONS, TIMEOUT_S, Outcome

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_HEADER_TABLE_SIZE, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 3, 4, 5
_CREDIT = 2**30
_REFUSED_STREAM = 7

REFUSED_STREAM = "REFUSED_STREAM"
"""HTTP/2's refusal of a call that nobody has looked at; gRPC's clients send such a call again by themselves."""

# A header that isn't in a table and isn't compressed: lengths before name and value.
_OK = b"\x0bgrpc-status\x010"


class End(NamedTuple):
    """How a request ended.

    Attributes:
        intended: When it was meant to leave, seconds.
        ended: When its end came.
        header: The last header, compressed; empty where there was none.
        data_bytes: Bytes of the answer.
        broken: Why there was none; "" where there was.
    """

    intended: float
    ended: float
    header: bytes
    data_bytes: int
    broken: str


@dataclass(slots=True)
class _Open:
    intended: float
    data_bytes: int = 0


class _Connection:
    """One connection, its socket not blocking."""

    def __init__(self, target: str, prepared: Prepared) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._header = _request_header(target, prepared.path)
        self._body = struct.pack(">BI", 0, len(prepared.body)) + prepared.body
        self._out: deque[memoryview] = deque()
        self._in = bytearray()
        self._next_stream = 1
        self._credit = 65535  # of the connection
        self._stream_credit = 65535
        self._max_streams = 100
        self._max_frame = 16384
        self._used = 0
        self._held: deque[float] = deque()  # requests that the server has no room for yet
        self._streams: dict[int, _Open] = {}
        self.ends: list[End] = []
        self.closed = False
        self._send(_PREFACE)
        settings = {_HEADER_TABLE_SIZE: 0, _INITIAL_WINDOW: _CREDIT}
        self._send(_frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in settings.items())))
        self._send(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _CREDIT)))
        while self._stream_credit == 65535:  # the server's own settings
            self.flush()
            self._parse(self.socket.recv(65536))
        if len(self._body) > self._stream_credit:
            raise ScriptError(f"a request has {len(self._body)} bytes; in an open loop at most {self._stream_credit}")
        self.socket.setblocking(False)

    @property
    def under_way(self) -> int:
        """Requests without an end."""
        return len(self._held) + len(self._streams)

    @property
    def has_output(self) -> bool:
        """Whether there are bytes that the socket didn't take yet."""
        return bool(self._out)

    def request(self, intended: float) -> None:
        """Sends a request, as soon as the server lets it."""
        self._held.append(intended)
        if self.closed:
            self._break()
        else:
            self._begin()

    def flush(self) -> None:
        """Writes what the socket takes."""
        while self._out:
            try:
                sent = self.socket.sendmsg([part for part, _ in zip(self._out, range(64), strict=False)])
            except BlockingIOError:
                return
            except OSError:
                self._break()
                return
            while self._out and sent >= len(self._out[0]):
                sent -= len(self._out.popleft())
            if sent:
                self._out[0] = self._out[0][sent:]

    def receive(self) -> None:
        """Reads what has come."""
        try:
            data = self.socket.recv(2**20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._parse(data)
        else:
            self._break()

    def _break(self) -> None:
        """Ends what was under way, as the server has closed the connection."""
        self.closed = True
        self._out.clear()
        for stream in list(self._streams):
            self._end(stream, b"", "connection closed")
        now = time.perf_counter()
        self.ends += [End(intended, now, b"", 0, "connection closed") for intended in self._held]
        self._held.clear()

    def _begin(self) -> None:
        size = len(self._body)
        while self._held and len(self._streams) < self._max_streams and self._credit >= size:
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            self._credit -= size
            self._streams[stream] = _Open(self._held.popleft())
            self._send(_frame(_HEADERS, _END_HEADERS, stream, self._header))
            for start in range(0, size, self._max_frame):
                part = memoryview(self._body)[start : start + self._max_frame]
                last = start + self._max_frame >= size
                self._send(_frame_head(len(part), _DATA, _END_STREAM if last else 0, stream))
                self._out.append(part)

    def _send(self, data: bytes) -> None:
        self._out.append(memoryview(data))

    def _end(self, stream: int, header: bytes, broken: str = "") -> None:
        call = self._streams.pop(stream, None)
        if call is not None:
            self.ends.append(End(call.intended, time.perf_counter(), header, call.data_bytes, broken))

    def _parse(self, data: bytes) -> None:
        buffer = self._in
        buffer += data
        at = 0
        while len(buffer) >= at + 9:
            size, kind, flags = int.from_bytes(buffer[at : at + 3], "big"), buffer[at + 3], buffer[at + 4]
            if len(buffer) < at + 9 + size:
                break
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._take(kind, flags, stream, memoryview(buffer)[at + 9 : at + 9 + size])
            at += 9 + size
        del buffer[:at]
        self._begin()

    def _take(self, kind: int, flags: int, stream: int, payload: memoryview) -> None:
        if kind == _DATA:
            self._used += len(payload)
            if self._used > _CREDIT // 2:
                self._send(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._used)))
                self._used = 0
            if (call := self._streams.get(stream)) is not None:
                call.data_bytes += len(payload)
        elif kind == _HEADERS and flags & _END_STREAM:
            self._end(stream, bytes(payload))
        elif kind == _RST_STREAM:
            error = int.from_bytes(payload, "big")
            self._end(stream, b"", REFUSED_STREAM if error == _REFUSED_STREAM else f"reset, HTTP/2 error {error}")
        elif kind == _WINDOW_UPDATE and not stream:
            self._credit += int.from_bytes(payload, "big")
        elif kind == _PING and not flags & _ACK:
            self._send(_frame(_PING, _ACK, 0, bytes(payload)))
        elif kind == _SETTINGS and not flags & _ACK:
            self._obey(dict(struct.iter_unpack(">HI", bytes(payload))))

    def _obey(self, settings: dict[int, int]) -> None:
        self._max_streams = settings.get(_MAX_STREAMS, self._max_streams)
        self._stream_credit = settings.get(_INITIAL_WINDOW, self._stream_credit)
        self._max_frame = settings.get(_MAX_FRAME, self._max_frame)
        self._send(_frame(_SETTINGS, _ACK, 0, b""))


def open_loop(
    target: str, prepared: Prepared, answer_bytes: int, rate: float, seconds: float, *, seed: int = 0
) -> Outcome:
    """Sends requests at random times (Poisson arrivals).

    Latency counts from the time that a request was meant to leave, so that neither a slow server nor a slow
    generator hides waiting. What the generator itself was late is told apart.

    Args:
        target: HOST:PORT.
        prepared: What to send.
        answer_bytes: Length of the right answer's message.
        rate: Mean arrivals per second; the gaps between them are exponential.
        seconds: How long requests arrive.
        seed: Of the arrival times.

    Raises:
        ScriptError: The requests are too large.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds)))
    connections = [_Connection(target, prepared) for _ in range(MAX_CONNECTIONS)]
    late: list[float] = []
    cpu = time.process_time()
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        times = (time.perf_counter() + np.cumsum(gaps)).tolist()
        until = times[-1] + TIMEOUT_S
        sent = 0
        while sent < len(times) or any(connection.under_way for connection in connections):
            now = time.perf_counter()
            if now > until:
                break
            while sent < len(times) and times[sent] <= now:
                late.append(now - times[sent])
                connections[sent % len(connections)].request(times[sent])
                sent += 1
            for connection in connections:
                connection.flush()
                if connection.closed:
                    if connection.socket in selector.get_map():
                        selector.unregister(connection.socket)
                    continue
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.has_output else 0)
                if selector.get_key(connection.socket).events != wanted:
                    selector.modify(connection.socket, wanted, connection)
            wait = times[sent] - time.perf_counter() if sent < len(times) else 1.0
            for key, events in selector.select(max(0.0, wait)):
                if events & selectors.EVENT_READ:
                    key.data.receive()
    cpu = time.process_time() - cpu
    ends = [end for connection in connections for end in connection.ends]
    for connection in connections:
        connection.socket.close()
    return _outcome(ends, len(times), answer_bytes + 5, cpu, late)


def _outcome(ends: list[End], requests: int, data_bytes: int, cpu: float, late: list[float]) -> Outcome:
    failures: Counter[str] = Counter()
    answered: list[tuple[float, float]] = []
    refused: list[tuple[float, float]] = []
    retries: list[float] = []
    for intended, ended, header, size, broken in ends:
        if broken:
            failures[broken] += 1
            continue
        if _OK in header:
            if size == data_bytes:
                answered.append((intended, ended - intended))
            else:
                failures["wrong length"] += 1
            continue
        refused.append((intended, ended - intended))
        name, details, waits = _read_status(header)
        # Only a full queue is a refusal with a name; of all else, the reason is needed.
        failures[name if name == "RESOURCE_EXHAUSTED" else f"{name}: {details}"] += 1
        retries.extend(waits)
    if len(ends) < requests:
        failures["no answer"] += requests - len(ends)
    return Outcome(Calls.of(answered), dict(failures), cpu, np.asarray(late), Calls.of(refused), tuple(retries))


def _read_status(header: bytes) -> tuple[str, str, list[float]]:
    """Name and details of a status, and the times after which it asks to try again, seconds."""
    fields = dict(hpack.Decoder().decode(header, raw=True))
    code = int(fields.get(b"grpc-status", b"2"))
    name = next(status.name for status in grpc.StatusCode if status.value[0] == code)
    waits = []
    encoded = fields.get(b"grpc-status-details-bin", b"")
    data = base64.b64decode(encoded + b"=" * (-len(encoded) % 4))
    for detail in status_pb2.Status.FromString(data).details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            waits.append(info.retry_delay.ToTimedelta().total_seconds())
    return name, unquote(fields.get(b"grpc-message", b"").decode()), waits


def _request_header(target: str, path: str) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": target,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    header: bytes = encoder.encode(fields.items(), huffman=False)
    return header


def _frame_head(size: int, kind: int, flags: int, stream: int) -> bytes:
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _frame_head(len(payload), kind, flags, stream) + payload
