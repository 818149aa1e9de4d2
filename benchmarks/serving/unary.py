"""Unary load by gRPC's Python client, with bytes in and out: closed loop, and open loop with Poisson arrivals."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from serving.bodies import NO_LIMIT, Prepared
from serving.figures import Calls, Doubles

MAX_CONNECTIONS = 8
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """What became of the requests of one run.

    Attributes:
        calls: Those that were answered as they should.
        failures: Number of the others by status, or by what was wrong with them.
        cpu_s: Processor time that the generator took, seconds.
        late: Open loop: how late the generator itself was with each request, seconds.
        refusals: Open loop: latencies of refused requests.
        retry_after_s: Open loop: what refusals asked to wait before another try, seconds, as far as they said.
    """

    calls: Calls
    failures: dict[str, int] = field(default_factory=dict)
    cpu_s: float = 0.0
    late: Doubles = field(default_factory=lambda: np.empty(0))
    refusals: Calls = field(default_factory=lambda: Calls.of(()))
    retry_after_s: tuple[float, ...] = ()


def retry_after(error: grpc.aio.AioRpcError) -> list[float]:
    """What a refusal asks to wait before another try (google.rpc.RetryInfo), seconds; empty when it doesn't say."""
    found = []
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    found.append(info.retry_delay.ToTimedelta().total_seconds())
    return found


def _channels(target: str, number: int) -> list[Any]:
    # Without an own pool all channels would share one connection.
    options = (*NO_LIMIT, ("grpc.use_local_subchannel_pool", 1))
    return [grpc.aio.insecure_channel(target, options=options) for _ in range(number)]


async def _close(channels: list[Any]) -> None:
    await asyncio.gather(*(channel.close() for channel in channels))


async def ask(target: str, prepared: Prepared) -> bytes:
    """Sends a unary request once.

    Raises:
        grpc.RpcError: It was refused.
    """
    (channel,) = _channels(target, 1)
    try:
        answer: bytes = await channel.unary_unary(prepared.path)(prepared.body, timeout=TIMEOUT_S)
    finally:
        await channel.close()
    return answer


async def closed_loop(target: str, prepared: Prepared, answer_bytes: int, in_flight: int, seconds: float) -> Outcome:
    """Keeps `in_flight` requests under way for `seconds`; then waits for the last answers."""
    channels = _channels(target, min(in_flight, MAX_CONNECTIONS))
    failures: Counter[str] = Counter()
    pairs: list[tuple[float, float]] = []
    cpu = time.process_time()
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        method = channels[number % len(channels)].unary_unary(prepared.path)
        while (start := time.perf_counter()) < until:
            try:
                answer = await method(prepared.body, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                failures[error.code().name] += 1
                continue
            if len(answer) == answer_bytes:
                pairs.append((start, time.perf_counter() - start))
            else:
                failures["wrong length"] += 1

    await asyncio.gather(*map(client, range(in_flight)))
    cpu = time.process_time() - cpu
    await _close(channels)
    return Outcome(Calls.of(pairs), dict(failures), cpu)


async def open_loop(
    target: str, prepared: Prepared, answer_bytes: int, rate: float, seconds: float, *, seed: int = 0
) -> Outcome:
    """Sends requests at random times, whether or not earlier ones are answered.

    Latency counts from the time that a request was meant to leave, so that neither a slow server nor a slow
    generator hides waiting. What the generator itself was late is told apart.

    Args:
        target: HOST:PORT.
        prepared: What to send.
        answer_bytes: Length of the right answer's message.
        rate: Mean arrivals per second; the gaps between them are exponential.
        seconds: How long requests arrive.
        seed: Of the arrival times.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds)))
    channels = _channels(target, MAX_CONNECTIONS)
    methods = [channel.unary_unary(prepared.path) for channel in channels]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    failures: Counter[str] = Counter()
    answered: list[tuple[float, float]] = []
    refused: list[tuple[float, float]] = []
    late: list[float] = []
    retries: list[float] = []
    cpu = time.process_time()

    async def one(number: int, intended: float) -> None:
        late.append(time.perf_counter() - intended)
        try:
            answer = await methods[number % len(methods)](prepared.body, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            # Only a full queue is a refusal with a name; of all else, the reason is needed.
            refusal = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            failures[error.code().name if refusal else f"{error.code().name}: {error.details()}"] += 1
            refused.append((intended, time.perf_counter() - intended))
            retries.extend(retry_after(error))
            return
        if len(answer) == answer_bytes:
            answered.append((intended, time.perf_counter() - intended))
        else:
            failures["wrong length"] += 1

    tasks = []
    start = time.perf_counter()
    for number, intended in enumerate(start + np.cumsum(gaps)):
        if (left := intended - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        elif number % 16 == 0:
            await asyncio.sleep(0)  # behind the schedule: answers must be read all the same
        tasks.append(asyncio.ensure_future(one(number, float(intended))))
    await asyncio.gather(*tasks)
    cpu = time.process_time() - cpu
    await _close(channels)
    return Outcome(Calls.of(answered), dict(failures), cpu, np.asarray(late), Calls.of(refused), tuple(retries))
