"""Bad input at scale: whatever a client sends, it gets a clean status, and the server lives.

Starts a server of its own, and sends it requests that Hypothesis draws from the messages' descriptions, each also with
its bytes spoilt; then connections that speak no proper HTTP/2 or gRPC, and bombs, while a well-behaved client goes on.
Exit code 1 if an answer wasn't clean, or the server or the other client took any harm.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
from fuzzing.answers import faults, send, traces
from fuzzing.calls import Case, calls
from fuzzing.connections import abuse_all, send_bombs, send_foreign_path
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from script import require_positive, run
from serving.clients import Crowd
from serving.figures import markdown
from serving.orders import Orders
from serving.process import Server
from serving.requests import OPTIONS
from serving.usage import Usage
from tqdm import tqdm

from engine.bundle import Bundle

MAX_GROWTH_MIB = 128.0
"""Of the server's resident memory, from half of the requests to their end: the allocator keeps what one of the largest
files took."""
_EXAMPLES = 500
_PICTURES = 50


class UncleanAnswer(AssertionError):  # noqa: N818
    """Raise when an answer isn't clean. The message says why."""


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """What to send, and how much of it."""

    bundle: Path
    """Bundle folder to serve."""
    requests: int = 100_000
    """Requests to send through gRPC."""
    variants: int = 4
    """Variants of every drawn request, with its bytes spoilt; they are sent at the same time."""
    seed: int = 0
    """The same seed draws the same requests, and the same connections."""
    findings: Path | None = None
    """Folder where Hypothesis keeps what failed, in its smallest form; a later run begins with that."""


@dataclass
class Sender:
    """Sends what Hypothesis draws, while the event loop of another thread runs."""

    config: FuzzConfig  # what to send, and how much of it
    channel: grpc.aio.Channel
    loop: asyncio.AbstractEventLoop  # where calls are made
    # how many calls ended with which status, by method and status
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)  # what Hypothesis says of calls whose answers weren't clean

    def check(self, cases: tuple[Case, ...]) -> None:
        """Sends calls at once."""

        async def send_all() -> list[str]:
            outcomes = await asyncio.gather(*(send(self.channel, case) for case in cases))
            self.statuses.update((case.name, one.status) for case, one in zip(cases, outcomes, strict=True))
            return [wrong for case, one in zip(cases, outcomes, strict=True) for wrong in faults(case, one)]

        if wrong := asyncio.run_coroutine_threadsafe(send_all(), self.loop).result():
            raise UncleanAnswer("; ".join(wrong))

    def send_all(self) -> None:
        """Draws and sends until there are enough."""
        config = self.config
        strategy = calls(Bundle.load(config.bundle).manifest, config.variants)
        once = settings(
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
            database=DirectoryBasedExampleDatabase(config.findings) if config.findings else None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        number = config.seed * 1_000_000
        with tqdm(desc="requests", total=config.requests, unit="request", disable=None) as bar:
            while (left := config.requests - self.statuses.total()) > 0:
                number += 1
                bar.update(config.requests - left - bar.n)
                some = settings(once, max_examples=min(_EXAMPLES, -(-left // (1 + config.variants))))
                try:
                    seed(number)(some(given(strategy)(self.check)))()
                except Exception as error:  # Hypothesis has several, with the calls in their notes
                    causes = getattr(error, "exceptions", ())  # of a failure that didn't come again
                    told = map(repr, (*causes, error))
                    self.failures.append("\n".join([*told, *getattr(error, "__notes__", ())])[:4000])


@dataclass
class Results:
    """What came of it all."""

    statuses: Counter[tuple[str, str]]  # how many calls ended with which status, by method and status
    usage: Usage
    seconds: float
    connections: int  # abusive connections
    good: str  # good requests of another client meanwhile, and their answers
    faults: list[str]  # what went wrong, a paragraph each


async def attack(server: Server, config: FuzzConfig) -> Results:
    """Sends everything, and watches a good client and the server's memory."""
    good = Crowd(server.target, Orders(Bundle.load(config.bundle), _PICTURES, 1), 1)
    over = asyncio.Event()
    running = asyncio.ensure_future(good.run(over.is_set))
    with Usage(server.pid) as usage:
        async with grpc.aio.insecure_channel(server.target, OPTIONS) as channel:
            sender = Sender(config, channel, asyncio.get_running_loop())
            await asyncio.to_thread(sender.send_all)
        seconds = usage.rss_mib[-1][0]
        connections, wrong = await abuse_all(server.target, config.seed)
        wrong += sender.failures + await send_bombs(server.target)
    over.set()
    tally = await running
    # Two thousand calls in one burst, one of the abuses, are more than the server has room for.
    if tally.wrong or set(tally.statuses) - {"RESOURCE_EXHAUSTED"} or not tally.answered:
        wrong.append(f"good requests of another client: {tally.describe()}; {tally.wrong[:3]} {dict(tally.reasons)}")
    wrong += traces(server.log)
    wrong += await send_foreign_path(server.target)
    grown = usage.peak_between(seconds - 2, seconds) - usage.peak_between(0, seconds / 2)
    if grown > MAX_GROWTH_MIB:
        wrong.append(f"the server's memory grew by {grown:.0f} MiB; at most {MAX_GROWTH_MIB:.0f} may be")
    return Results(sender.statuses, usage, seconds, connections, tally.describe(), wrong)


def table(results: Results) -> str:
    """The statuses by method, Markdown."""
    found = results.statuses
    statuses, methods = (sorted({key[part] for key in found}) for part in (1, 0))
    counts = {method: [found[method, status] for status in statuses] for method in methods}
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    cells = {method: [f"{count:,}" for count in row] for method, row in counts.items()}
    return markdown([{"method": method, **dict(zip(statuses, row, strict=True))} for method, row in cells.items()])


def fuzz(config: FuzzConfig) -> bool:
    """Does everything and reports; whether all was clean."""
    require_positive(config, "requests")
    with Server(["-m", "engine", "--bundle", config.bundle.resolve()]) as server:
        results = asyncio.run(attack(server, config))
    if server.process.returncode:
        results.faults.append(f"after SIGTERM the server ended with {server.process.returncode}")
    sent, usage = results.statuses.total(), results.usage
    print(f"{table(results)}\n\n- {sent:,} requests in {results.seconds:.0f} s")
    print(f"- {results.connections:,} connections that speak no proper HTTP/2 or gRPC")
    print(f"- good requests of another client meanwhile: {results.good}")
    print(f"- memory of the server: {usage.peak_between(0, results.seconds / 2):.0f} MiB in the first half, "
          f"{usage.peak_between(results.seconds - 2, results.seconds):.0f} MiB at the end, "
          f"at most {usage.peak_mib:.0f} MiB")  # fmt: skip
    for fault in results.faults:
        print(f"- FAIL: {fault}")
    print("\nFAIL" if results.faults else "\nPASS")
    return not results.faults


main = partial(run, FuzzConfig, fuzz, __doc__)

if __name__ == "__main__":
    sys.exit(main())
