"""Load on EditStream by gRPC's Python client, with bytes in and out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from typing import Any

import grpc

from serving.bodies import NO_LIMIT, Prepared
from serving.figures import Calls
from serving.unary import TIMEOUT_S, Outcome

MAX_STREAMS = 8


def streams(in_flight: int) -> int:
    """Streams that messages are spread over: the largest divisor of `in_flight` up to `MAX_STREAMS`."""
    return max(number for number in range(1, MAX_STREAMS + 1) if in_flight % number == 0)


async def ask(target: str, prepared: Prepared) -> bytes:
    """Opens a stream, sends the opening and one message, and gives the answer to the latter."""
    async with grpc.aio.insecure_channel(target, options=NO_LIMIT) as channel:
        call = channel.stream_stream(prepared.path)(timeout=TIMEOUT_S)
        if prepared.opening is not None:
            await call.write(prepared.opening)
            await call.read()
        await call.write(prepared.body)
        answer = await call.read()
        await call.done_writing()
        code = await call.code()
        if not isinstance(answer, bytes):
            raise grpc.RpcError(f"{code.name}: {await call.details()}")
    return answer


async def closed_loop(target: str, prepared: Prepared, answer_bytes: int, in_flight: int, seconds: float) -> Outcome:
    """Keeps `in_flight` messages unanswered, over several streams, for `seconds`; then reads the last answers."""
    number = streams(in_flight)
    loops = [_Loop(prepared, answer_bytes, in_flight // number, time.perf_counter() + seconds) for _ in range(number)]
    options = (*NO_LIMIT, ("grpc.use_local_subchannel_pool", 1))
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in loops]
    cpu = time.process_time()
    await asyncio.gather(
        *(loop.run(channel, TIMEOUT_S + seconds) for loop, channel in zip(loops, channels, strict=True))
    )
    cpu = time.process_time() - cpu
    await asyncio.gather(*(channel.close() for channel in channels))
    failures = sum((loop.failures for loop in loops), Counter[str]())
    return Outcome(Calls.of([pair for loop in loops for pair in loop.pairs]), dict(failures), cpu)


class _Loop:
    """One stream's part: `ahead` messages unanswered until a time."""

    def __init__(self, prepared: Prepared, answer_bytes: int, ahead: int, until: float) -> None:
        self.pairs: list[tuple[float, float]] = []
        self.failures: Counter[str] = Counter()
        self._prepared = prepared
        self._answer_bytes = answer_bytes
        self._ahead = ahead
        self._until = until
        self._sent: deque[float] = deque()

    async def run(self, channel: Any, timeout: float) -> None:
        call = channel.stream_stream(self._prepared.path)(timeout=timeout)
        try:
            if self._prepared.opening is not None:
                await call.write(self._prepared.opening)
                await call.read()
            await self._exchange(call)
        except grpc.RpcError as error:
            self.failures[error.code().name] += max(1, len(self._sent))
        except asyncio.InvalidStateError:  # a write after the server ended the stream
            self.failures["stream ended"] += max(1, len(self._sent))

    async def _exchange(self, call: Any) -> None:
        for _ in range(self._ahead):
            self._sent.append(time.perf_counter())
            await call.write(self._prepared.body)
        while self._sent:
            answer = await call.read()
            now = time.perf_counter()
            if answer is grpc.aio.EOF:
                raise asyncio.InvalidStateError
            start = self._sent.popleft()
            if len(answer) == self._answer_bytes:
                self.pairs.append((start, now - start))
            else:
                self.failures["wrong length"] += 1
            if now < self._until:
                self._sent.append(now)
                await call.write(self._prepared.body)
        await call.done_writing()
        await call.read()
