"""Bad input at scale: whatever a client sends, it gets a clean status, and the server lives.

Starts a server of its own, and sends it requests that Hypothesis draws from the messages' descriptions, each also with
its bytes mutated; then connections that speak no proper HTTP/2 or gRPC, and bombs, while a well-behaved client goes on.
Exit code 1 if an answer wasn't clean, or the server or the other client took any harm.
"""

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc
from fuzzing.answers import faults, send, traces
from fuzzing.calls import Case, calls
from fuzzing.connections import abuse_all, send_bombs, send_foreign_path
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from script import main_of, require_positive
from serving.clients import Load
from serving.figures import markdown
from serving.process import Server
from serving.requests import OPTIONS
from serving.usage import Usage
from serving.workload import Workload
from tqdm import tqdm

from engine.bundle import Bundle

MAX_GROWTH_MIB = 128.0
"""Of the server's resident memory, from half of the requests to their end: the allocator keeps what one of the largest
files took."""
_EXAMPLES = 500
_PICTURES = 50


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """What to send, and how much of it."""

    bundle: Path
    """Bundle folder to serve."""
    requests: int = 100_000
    """Requests to send through gRPC."""
    variants: int = 4
    """Variants of every drawn request, with its bytes mutated; they are sent at the same time."""
    seed: int = 0
    """The same seed draws the same requests, and the same connections."""
    findings: Path | None = None
    """Folder where Hypothesis keeps what failed, in its smallest form; a later run begins with that."""


def send_drawn(
    config: FuzzConfig, channel: grpc.aio.Channel, loop: asyncio.AbstractEventLoop
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Sends what Hypothesis draws, while the event loop of another thread runs, until it is enough.

    Returns how many calls ended with which status, by method and status, and what Hypothesis says of those whose
    answers weren't clean.
    """
    statuses, failures = Counter[tuple[str, str]](), list[str]()

    async def send_all(cases: tuple[Case, ...]) -> list[str]:
        outcomes = await asyncio.gather(*(send(channel, case) for case in cases))
        statuses.update((case.name, one.status) for case, one in zip(cases, outcomes, strict=True))
        return [wrong for case, one in zip(cases, outcomes, strict=True) for wrong in faults(case, one)]

    def check(cases: tuple[Case, ...]) -> None:
        if wrong := asyncio.run_coroutine_threadsafe(send_all(cases), loop).result():
            raise AssertionError("; ".join(wrong))

    strategy = calls(Bundle.load(config.bundle).manifest, config.variants)
    once = settings(
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        database=DirectoryBasedExampleDatabase(config.findings) if config.findings else None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    number = config.seed * 1_000_000
    with tqdm(desc="requests", total=config.requests, unit="request", disable=None) as bar:
        while (left := config.requests - statuses.total()) > 0:
            number += 1
            bar.update(config.requests - left - bar.n)
            some = settings(once, max_examples=min(_EXAMPLES, -(-left // (1 + config.variants))))
            try:
                seed(number)(some(given(strategy)(check)))()
            except Exception as error:  # Hypothesis has several, with the calls in their notes
                causes = getattr(error, "exceptions", ())  # of a failure that didn't come again
                told = map(repr, (*causes, error))
                failures.append("\n".join([*told, *getattr(error, "__notes__", ())])[:4000])
    return statuses, failures


async def attack(server: Server, config: FuzzConfig) -> list[str]:
    """Sends everything, watches a good client and the server's memory, and reports. Returns what went wrong."""
    good = Load(server.target, Workload(Bundle.load(config.bundle), _PICTURES, 1), 1)
    over = asyncio.Event()
    running = asyncio.ensure_future(good.run(over.is_set))
    with Usage(server.process.pid) as usage:
        async with grpc.aio.insecure_channel(server.target, OPTIONS) as channel:
            statuses, wrong = await asyncio.to_thread(send_drawn, config, channel, asyncio.get_running_loop())
        seconds = usage.rss_mib[-1][0]
        connections, found = await abuse_all(server.target, config.seed)
        wrong += found + await send_bombs(server.target)
    over.set()
    stats = await running
    # Two thousand calls in one burst, one of the abuses, are more than the server has room for.
    if stats.wrong or set(stats.statuses) - {"RESOURCE_EXHAUSTED"} or not stats.answered:
        wrong.append(f"good requests of another client: {stats.describe()}; {stats.wrong[:3]} {dict(stats.reasons)}")
    wrong += traces(server.log)
    wrong += await send_foreign_path(server.target)
    first, last = usage.peak_between(0, seconds / 2), usage.peak_between(seconds - 2, seconds)
    if last - first > MAX_GROWTH_MIB:
        wrong.append(f"the server's memory grew by {last - first:.0f} MiB; at most {MAX_GROWTH_MIB:.0f} may be")
    print(f"{table(statuses)}\n")
    print(f"- {statuses.total():,} requests in {seconds:.0f} s")
    print(f"- {connections:,} connections that speak no proper HTTP/2 or gRPC")
    print(f"- good requests of another client meanwhile: {stats.describe()}")
    print(f"- memory of the server: {first:.0f} MiB in the first half, {last:.0f} MiB at the end, "
          f"at most {usage.peak_mib:.0f} MiB")  # fmt: skip
    return wrong


def table(found: Counter[tuple[str, str]]) -> str:
    """The statuses by method, Markdown."""
    statuses = sorted({status for _, status in found})
    rows = [
        {"method": method, **{status: f"{found[method, status]:,}" for status in statuses}}
        for method in sorted({method for method, _ in found})
    ]
    return markdown(rows)


def fuzz(config: FuzzConfig) -> bool:
    """Runs everything and reports. Returns whether all answers were clean."""
    require_positive(config, "requests")
    with Server(["-m", "engine", "--bundle", config.bundle.resolve()]) as server:
        wrong = asyncio.run(attack(server, config))
    if server.process.returncode:
        wrong.append(f"after SIGTERM the server ended with {server.process.returncode}")
    for fault in wrong:
        print(f"- FAIL: {fault}")
    print("\nFAIL" if wrong else "\nPASS")
    return not wrong


main = main_of(FuzzConfig, fuzz, __doc__)

if __name__ == "__main__":
    sys.exit(main())
