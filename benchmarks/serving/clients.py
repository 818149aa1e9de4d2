"""Clients that check every answer: each has its own connection, and one request after the other."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from engine.client import AsyncClient, ClientError
from serving.figures import Calls
from serving.requests import OPTIONS, TIMEOUT_S, read_images, stub_of
from serving.workload import Request, Workload, WrongAnswer

STREAM_MESSAGES = 12


@dataclass
class Stats:
    """What clients sent and got."""

    sent: Counter[str] = field(default_factory=Counter)  # requests (a stream counts as one) by RPC
    answered: Counter[str] = field(default_factory=Counter)  # right answers by RPC
    statuses: Counter[str] = field(default_factory=Counter)  # failed requests by status
    reasons: Counter[str] = field(default_factory=Counter)  # what failures said, and how often
    wrong: list[str] = field(default_factory=list)  # what was wrong with wrong answers
    images: int = 0  # images of right answers
    pairs: list[tuple[float, float]] = field(default_factory=list)  # start and latency of right answers, seconds

    @property
    def calls(self) -> Calls:
        """Right answers."""
        return Calls.of(self.pairs)

    @property
    def lost(self) -> int:
        """Requests that ended neither with an answer nor with a status."""
        ended = self.answered.total() + self.statuses.total() + len(self.wrong)
        return self.sent.total() - ended

    @property
    def all_right(self) -> bool:
        """Whether there were answers, and nothing but right ones."""
        return self.answered.total() > 0 and not (self.statuses or self.wrong or self.lost)

    async def count(self, method: str, request: Any) -> bool:
        """Awaits a request, which gives its number of images, and counts it. Returns whether the answer was right."""
        start = time.perf_counter()
        self.sent[method] += 1
        try:
            images = await request
        except grpc.RpcError as error:
            status = error.code().name
            self.statuses[status] += 1
            self.reasons[f"{status}: {(error.details() or '')[:160]}"] += 1
        except ClientError as error:
            self.statuses[error.status] += 1
            self.reasons[str(error)[:160]] += 1
        except WrongAnswer as error:
            self.wrong.append(f"{method}: {error}")
        else:
            self.answered[method] += 1
            self.images += images
            self.pairs.append((start, time.perf_counter() - start))
            return True
        return False

    def common_reasons(self, number: int) -> list[str]:
        """What failures said most often, and how often."""
        return [f"{count} x {reason}" for reason, count in self.reasons.most_common(number)]

    def describe(self) -> str:
        """One line: sent, answered, refused by status, wrong, lost."""
        refused = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items())) or "none refused"
        return (
            f"{self.sent.total()} sent, {self.answered.total()} answered right, {refused}, "
            f"{len(self.wrong)} wrong, {self.lost} lost"
        )


def connect(target: str, *options: tuple[str, Any]) -> Any:
    """A connection of its own, for grpc.aio, with gRPC's options."""
    return grpc.aio.insecure_channel(target, options=(*OPTIONS, *options))


async def ask(
    stub: Any, workload: Workload, request: Request, *, timeout: float = TIMEOUT_S, cancel_after: float | None = None
) -> int:
    """Sends a request, cancels it after `cancel_after` seconds, and checks its answer. Returns its number of images."""
    call = getattr(stub, request.method)(request.message, timeout=timeout)
    if cancel_after is not None:
        asyncio.get_running_loop().call_later(cancel_after, call.cancel)
    try:
        workload.check(request, await call)
    except asyncio.CancelledError:
        if call.cancelled():
            raise ClientError("CANCELLED", "given up by this client") from None
        raise
    return request.count


async def ask_stream(
    stub: Any, workload: Workload, rng: np.random.Generator, messages: int, *, pause: float = 0.0
) -> int:
    """Opens an EditStream, sends messages without waiting for answers, and checks that these come in order.

    The reader sleeps for `pause` seconds before it reads at all. Returns how many images were answered.
    """
    plan = workload.stream(messages, rng)
    call = stub.EditStream([request for request, _ in plan], timeout=TIMEOUT_S)
    try:
        await asyncio.sleep(pause)
        for request, expected in plan:
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise WrongAnswer(f"the stream ended before answer {request.id} of {messages}")
            if answer.id != request.id:
                raise WrongAnswer(f"answer {answer.id} came where {request.id} was due")
            if answer.WhichOneof("outcome") != "edited":
                raise WrongAnswer(f"answer {answer.id} is an error: {answer.error.message}")
            workload.compare(read_images(answer.edited), expected)
        if await call.read() is not grpc.aio.EOF:
            raise WrongAnswer("the stream goes on after its last answer")
    finally:
        call.cancel()
    return sum(len(expected) for _, expected in plan)


async def ask_own(client: AsyncClient, workload: Workload, rng: np.random.Generator) -> int:
    """Edits a picture through this project's client, and checks the answer. Returns its number of images."""
    row, edit = int(rng.integers(len(workload.pictures))), int(rng.integers(len(workload.edits)))
    images = await client.edit(workload.pictures[row : row + 1], *workload.edits[edit])
    workload.compare(images, workload.edited[edit][row : row + 1])
    return len(images)


@dataclass
class Load:
    """Clients that send requests until they are told to stop."""

    target: str  # HOST:PORT, or several servers as gRPC writes them
    workload: Workload
    number: int
    options: tuple[tuple[str, Any], ...] = ()  # of their connections, gRPC's
    streams: float = 0.1  # share of turns that are an EditStream of `STREAM_MESSAGES` messages
    until_refused: bool = False  # whether a client leaves when a request of its own fails
    stats: Stats = field(default_factory=Stats)

    async def run(self, stop: Callable[[], bool]) -> Stats:
        """Sends until `stop()`. Returns when every request has ended."""
        await asyncio.gather(*(self._client(seed, stop) for seed in range(self.number)))
        return self.stats

    async def _client(self, seed: int, stop: Callable[[], bool]) -> None:
        rng = np.random.default_rng([7, seed])
        async with connect(self.target, *self.options) as channel:
            stub = stub_of(channel)
            while not stop():
                if rng.random() < self.streams:
                    right = await self.stats.count("EditStream", ask_stream(stub, self.workload, rng, STREAM_MESSAGES))
                else:
                    request = self.workload.draw(rng)
                    right = await self.stats.count(request.method, ask(stub, self.workload, request))
                if self.until_refused and not right:
                    return
