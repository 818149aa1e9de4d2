"""Sends calls over real connections, many at once, as bytes that no client library has looked at."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from fuzzing.cases import LONG_S, STREAMS, Case
from fuzzing.verdict import Outcome, faults

# What grpc.aio says by itself of a stream that the server has ended while it was writing; it doesn't say how.
_CLIENT_FAILED = "Internal error from Core"
_GRACE_S = 30.0  # beyond a call's deadline; then it counts as hung


@dataclass
class Tally:
    """What came of many calls.

    Attributes:
        statuses: How many calls ended with which status, by method and status.
        findings: Calls whose answers weren't clean, and what was wrong with them.
        failures: How many those are.
    """

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[tuple[Case, Outcome, str]] = field(default_factory=list)
    failures: int = 0

    def add(self, case: Case, outcome: Outcome) -> None:
        """Counts a call, and judges it."""
        self.statuses[case.name, outcome.status] += 1
        wrong = "; ".join(faults(case, outcome))
        if wrong:
            self.failures += 1
            if len(self.findings) < 100:
                self.findings.append((case, outcome, wrong))

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return self.statuses.total()


@asynccontextmanager
async def channels(target: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Connections of their own to a server."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    opened = [grpc.aio.insecure_channel(target, [*options, ("grpc.max_send_message_length", -1)]) for _ in range(count)]
    try:
        yield opened
    finally:
        for channel in opened:
            await channel.close()


async def send_all(opened: list[grpc.aio.Channel], cases: Iterable[Case], in_flight: int, tally: Tally) -> None:
    """Sends calls, so many at a time, until there are no more."""
    waiting: Iterator[Case] = iter(cases)

    async def work(channel: grpc.aio.Channel) -> None:
        for case in waiting:
            tally.add(case, await send(channel, case))

    await asyncio.gather(*(work(opened[number % len(opened)]) for number in range(in_flight)))


async def send(channel: grpc.aio.Channel, case: Case) -> Outcome:
    """Makes one call."""
    options: dict[str, Any] = {"timeout": case.timeout_s, "metadata": case.metadata}
    call = channel.stream_stream(case.path)(iter(case.bodies), **options) if case.path in STREAMS else None
    if call is None:
        call = channel.unary_unary(case.path)(case.bodies[0], **options)
    loop = asyncio.get_running_loop()
    giving_up = None if case.cancel_s is None else loop.call_later(case.cancel_s, call.cancel)
    answers: tuple[bytes, ...] = ()
    try:
        async with _deadline(case.timeout_s + _GRACE_S):
            answers = await _answers(call, case)
            status, message = await call.code(), await call.details()
            trailing = await call.trailing_metadata()
    except grpc.aio.AioRpcError as error:
        if error.details() == _CLIENT_FAILED and len(case.bodies) > 1:
            return await send(channel, case._replace(bodies=case.bodies[:-1]))
        if error.details() == _CLIENT_FAILED and case.timeout_s < LONG_S:
            return Outcome("DEADLINE_EXCEEDED", "", (), answers)
        status, message, trailing = error.code(), error.details(), error.trailing_metadata()
    except asyncio.CancelledError:
        return Outcome("CANCELLED", "", (), answers)
    except asyncio.TimeoutError:
        call.cancel()
        return Outcome("HUNG", "", (), answers)
    finally:
        if giving_up:
            giving_up.cancel()
    return Outcome(status.name, message or "", tuple((key, value) for key, value in trailing or ()), answers)


async def _answers(call: Any, case: Case) -> tuple[bytes, ...]:
    if case.path not in STREAMS:
        return (await call,)
    return tuple([answer async for answer in call])


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    """What asyncio.timeout does from Python 3.11 on."""
    task = asyncio.current_task()
    assert task is not None
    late = False

    def stop() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, stop)
    try:
        yield
    except asyncio.CancelledError:
        if not late:
            raise
        raise asyncio.TimeoutError from None
    finally:
        timer.cancel()
