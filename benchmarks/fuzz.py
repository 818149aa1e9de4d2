"""Bad input at scale: whatever a client sends, it gets a clean status, and the server lives.

Starts a server of its own, and sends it requests that Hypothesis draws from the messages' descriptions, each also with
its bytes spoilt; then connections that speak no proper HTTP/2 or gRPC, and bombs, while a well-behaved
client goes on. Beside that, a coverage-guided fuzzer (atheris) reads files and requests in processes of its own. Exit
code 1 if an answer wasn't clean, or the server or the other client took any harm.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro
from fuzzing.bystander import Bystander
from fuzzing.calling import channels, send_all
from fuzzing.cases import Case, Facts
from fuzzing.connections import abuse_all, send_bombs, send_foreign_path
from fuzzing.drawing import cases
from fuzzing.guiding import TARGETS, Guided
from fuzzing.report import MAX_GROWTH_MIB, Results, markdown, write_findings
from fuzzing.verdict import traces
from serving.process import ScriptError, Server, Usage
from tqdm import tqdm

from engine.errors import EngineError

_WARM_SHARE = 0.2
_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """What to send, and how much of it."""

    bundle: Path
    """Bundle folder to serve."""
    requests: int = 100_000
    """Requests to send through gRPC."""
    mutants: int = 4
    """Variants of every drawn request, with its bytes spoilt."""
    seed: int = 0
    """The same seed draws much the same requests, and the same connections."""
    in_flight: int = 32
    """Requests under way at any time."""
    guided: int = 100_000
    """Inputs for the coverage-guided fuzzer on image files, and as many on requests; 0: none, without atheris."""
    findings: Path | None = None
    """Folder for the requests that weren't answered cleanly, one file each."""


async def attack(server: Server, config: FuzzConfig, results: Results) -> None:
    """Sends everything, and watches a good client and the server's memory."""
    facts = Facts.of(config.bundle)
    warm_at = 0.0

    def counted() -> Iterator[Case]:
        nonlocal warm_at
        drawn = cases(config.bundle, config.requests, config.mutants, config.seed)
        for number, case in enumerate(tqdm(drawn, "requests", config.requests, unit="request", disable=None)):
            if number == int(config.requests * _WARM_SHARE):
                warm_at = time.monotonic() - started
            yield case

    async with Bystander(server.target, facts) as bystander:
        with Usage(server.pid) as usage:
            started = time.monotonic()
            async with channels(server.target, _CHANNELS) as opened:
                await send_all(opened, counted(), config.in_flight, results.tally)
            results.seconds = time.monotonic() - started
            results.connections, faults = await abuse_all(server.target, config.seed)
            results.faults += faults + await send_bombs(server.target)
        await asyncio.sleep(1)
    results.faults += traces(server.log)
    results.faults += await send_foreign_path(server.target)
    results.bystander, results.again = bystander.answered, bystander.again
    results.faults += bystander.faults
    early = usage.peak_between(0, warm_at)
    late = usage.peak_between(results.seconds - 2, results.seconds)
    results.rss_mib = (early, late, usage.peak_mib)
    if late - early > MAX_GROWTH_MIB:
        results.faults.append(
            f"the server's memory grew by {late - early:.0f} MiB; at most {MAX_GROWTH_MIB:.0f} may be"
        )


def run(config: FuzzConfig) -> Results:
    """Does everything.

    Raises:
        ScriptError: Something that is needed isn't there.
    """
    if config.guided and not find_spec("atheris"):
        raise ScriptError("--guided needs atheris: pip install atheris (Linux), or --guided 0 to go without")
    results = Results()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = Server(["-m", "engine", "--bundle", config.bundle], Path(folder) / "log")
        with server:
            asyncio.run(attack(server, config, results))
            server.signal(signal.SIGTERM)
            if (code := server.wait(60)) != 0:
                results.faults.append(f"after SIGTERM the server ended with {code}")
        if config.guided:
            guided = [Guided(target, config.bundle, config.guided, config.seed) for target in TARGETS]
            for one in guided:
                stack.callback(one.stop)
            results.guided = [one.figures() for one in guided]
    return results


def main() -> int:
    """Runs the script; the exit code."""
    config = tyro.cli(FuzzConfig, description=__doc__)
    try:
        results = run(config)
    except (ScriptError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(markdown(results)))
    if config.findings and results.tally.findings:
        write_findings(results, config.findings)
    return 0 if results.passed else 1


if __name__ == "__main__":
    sys.exit(main())
