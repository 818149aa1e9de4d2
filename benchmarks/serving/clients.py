"""Clients that check every answer: each has its own connection, and one request after the other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from protos import dfcvae_pb2_grpc
from serving.answers import WrongAnswer
from serving.bodies import NO_LIMIT
from serving.figures import Calls
from serving.menu import Menu, Order, stream_once

STREAM_MESSAGES = 12


@dataclass
class Tally:
    """What clients sent and got.

    Attributes:
        sent: Requests (a stream counts as one) by RPC.
        answered: Right answers by RPC.
        statuses: Failed requests by status.
        reasons: What failures said, and how often.
        wrong: What was wrong with wrong answers.
        images: Images of right answers.
        pairs: Start and latency of right answers, seconds.
    """

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    images: int = 0
    pairs: list[tuple[float, float]] = field(default_factory=list)

    @property
    def calls(self) -> Calls:
        """Right answers."""
        return Calls.of(self.pairs)

    @property
    def lost(self) -> int:
        """Requests that ended neither with an answer nor with a status."""
        ended = sum(self.answered.values()) + sum(self.statuses.values()) + len(self.wrong)
        return sum(self.sent.values()) - ended

    def refuse(self, error: Any) -> None:
        """Counts a failed request."""
        status = error.code().name
        self.statuses[status] += 1
        self.reasons[f"{status}: {(error.details() or '')[:160]}"] += 1

    async def ask(self, stub: Any, order: Order, timeout: float, *, cancel_after: float | None = None) -> bool:
        """Sends one request, checks its answer, and counts what came of it.

        Args:
            stub: The service's methods.
            order: What to send.
            timeout: Deadline, seconds.
            cancel_after: When to give up by ourselves, seconds; None: never.

        Returns:
            Whether the answer was right.
        """
        start = time.perf_counter()
        self.sent[order.method] += 1
        call = getattr(stub, order.method)(order.request, timeout=timeout)
        if cancel_after is not None:
            asyncio.get_running_loop().call_later(cancel_after, call.cancel)
        try:
            order.check(await call)
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            self.statuses["CANCELLED"] += 1
        except grpc.RpcError as error:
            self.refuse(error)
        except WrongAnswer as error:
            self.wrong.append(f"{order.method}: {error}")
        else:
            self.answer(order.method, order.images, start)
            return True
        return False

    def answer(self, method: str, images: int, start: float) -> None:
        """Counts a right answer to what was sent at `start`."""
        self.answered[method] += 1
        self.images += images
        self.pairs.append((start, time.perf_counter() - start))

    def describe(self) -> str:
        """One line: sent, answered, refused by status, wrong, lost."""
        refused = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items())) or "none refused"
        return (
            f"{sum(self.sent.values())} sent, {sum(self.answered.values())} answered right, {refused}, "
            f"{len(self.wrong)} wrong, {self.lost} lost"
        )


def connect(target: str) -> Any:
    """A connection of its own, for grpc.aio."""
    return grpc.aio.insecure_channel(target, options=(*NO_LIMIT, ("grpc.use_local_subchannel_pool", 1)))


def stub_of(channel: Any) -> Any:
    """The service's methods on a channel."""
    return dfcvae_pb2_grpc.LatentEngineStub(channel)  # type: ignore[no-untyped-call]


@dataclass
class Crowd:
    """Clients that send requests of a menu until they are told to stop.

    Attributes:
        target: HOST:PORT.
        menu: What they send.
        number: How many.
        timeout_s: Deadline of every request, seconds: what takes longer hangs.
        streams: Share of turns that are an EditStream of `STREAM_MESSAGES` messages.
        until_refused: Whether a client leaves when a request of its own fails.
    """

    target: str
    menu: Menu
    number: int
    timeout_s: float = 60.0
    streams: float = 0.1
    until_refused: bool = False
    tally: Tally = field(default_factory=Tally)

    async def run(self, stop: Callable[[], bool]) -> Tally:
        """Sends until `stop` says so; returns when every request has ended."""
        await asyncio.gather(*(self._client(seed, stop) for seed in range(self.number)))
        return self.tally

    async def _client(self, seed: int, stop: Callable[[], bool]) -> None:
        rng = np.random.default_rng([7, seed])
        async with connect(self.target) as channel:
            stub = stub_of(channel)
            while not stop():
                if not await self._turn(stub, rng) and self.until_refused:
                    return

    async def _turn(self, stub: Any, rng: np.random.Generator) -> bool:
        tally = self.tally
        if rng.random() >= self.streams:
            return await tally.ask(stub, self.menu.draw(rng), self.timeout_s)
        start = time.perf_counter()
        tally.sent["EditStream"] += 1
        try:
            images = await stream_once(stub, self.menu, rng, messages=STREAM_MESSAGES, timeout=self.timeout_s)
        except grpc.RpcError as error:
            tally.refuse(error)
        except WrongAnswer as error:
            tally.wrong.append(f"EditStream: {error}")
        else:
            tally.answer("EditStream", images, start)
            return True
        return False
