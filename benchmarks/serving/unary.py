"""Unary load by gRPC's Python client in a closed loop, with bytes in and out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

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
