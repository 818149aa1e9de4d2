"""Overload: requests arrive at 1, 2, 3 and 5 times what the server can do (open loop, Poisson).

Starts a server of its own, measures its capacity in a closed loop, then offers multiples of it. Throughput should hold,
what is accepted should be answered in bounded time, and the rest be refused at once, with the time to wait. Exit code 1
if a request gets anything but its answer or a refusal (RESOURCE_EXHAUSTED; HTTP/2's REFUSED_STREAM beyond the calls
that a connection may have open), or if the server doesn't end with exit code 0.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from serving import h2load
from serving.arrivals import REFUSED_STREAM
from serving.bench import Bench, Row
from serving.bodies import Case, ask_model
from serving.figures import markdown, write_json
from serving.inprocess import InProcess
from serving.process import ScriptError, Server
from serving.unary import Outcome
from tqdm import tqdm

from engine.bundle import Bundle
from engine.errors import EngineError

REFUSAL = "RESOURCE_EXHAUSTED"
REFUSALS = (REFUSAL, REFUSED_STREAM)
CAPACITY_IN_FLIGHT = 16
CAPACITY_READINGS = 3


@dataclass(frozen=True, kw_only=True)
class OverloadConfig:
    """What is offered, and for how long."""

    bundle: Path
    """Bundle folder to serve."""
    operation: Literal["encode", "edit", "decode"] = "edit"
    """Operation of the requests; raw pixels."""
    images: int = 16
    """Images per request: large ones let this generator offer many times the capacity from the same cores."""
    times: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    """Arrivals, as multiples of the measured capacity."""
    max_queue: int = 1024
    """The server's --max-queue, images: with the rate, it bounds how long an accepted request waits."""
    seconds: float = 10.0
    """How long requests arrive at each rate, seconds."""
    json: Path | None = None
    """File to write all figures to."""
    quick: bool = False
    """A smoke test: two rates, a fraction of a second each, a short queue."""

    def resolved(self) -> OverloadConfig:
        """Checked, and with `quick` worked out.

        Raises:
            ScriptError: Names the flag, its value and the mend.
        """
        if self.images < 1:
            raise ScriptError(f"--images {self.images}: must be at least 1")
        if self.max_queue < 2 * self.images:
            raise ScriptError(f"--max-queue {self.max_queue}: must hold two requests of {self.images} images at least")
        if not 0 < self.seconds < float("inf"):
            raise ScriptError(f"--seconds {self.seconds}: must be above 0")
        if any(not 0 < factor < float("inf") for factor in self.times):
            raise ScriptError(f"--times {' '.join(map(str, self.times))}: must be above 0")
        if self.json is not None and not self.json.parent.is_dir():
            raise ScriptError(f"--json {self.json}: there is no folder {self.json.parent}; make it first")
        return replace(self, times=(1.0, 3.0), seconds=0.5, max_queue=4 * self.images) if self.quick else self


@dataclass(frozen=True)
class Offer:
    """What became of one rate of arrivals.

    Attributes:
        times: Offered, as a multiple of the capacity.
        row: Figures of the accepted requests; latency counts from the intended start.
        accepted: Number of right answers.
        refused: Number of refusals for want of room.
        resets: Number of calls that were refused by HTTP/2, beyond --max-concurrent-streams of a connection.
        others: Number of requests with any other end, by status.
        refusal_ms: Percentiles 50 and 99 of how long a refusal took.
        retry_after_s: Smallest and largest time that refusals asked to wait; None where none said.
        retries_told: How many did say.
    """

    times: float
    row: Row
    accepted: int
    refused: int
    resets: int
    others: dict[str, int]
    refusal_ms: tuple[float, float]
    retry_after_s: tuple[float, float] | None
    retries_told: int

    @classmethod
    def of(cls, times: float, row: Row, outcome: Outcome) -> Offer:
        """Sums up a run."""
        others = {status: count for status, count in outcome.failures.items() if status not in REFUSALS}
        refused = outcome.failures.get(REFUSAL, 0)
        quick, slow = (float("nan"), float("nan"))
        if len(outcome.refusals):
            quick, slow = map(float, np.percentile(outcome.refusals.latencies * 1e3, [50, 99]))
        told = outcome.retry_after_s
        between = (min(told), max(told)) if told else None
        resets = outcome.failures.get(REFUSED_STREAM, 0)
        return cls(times, row, len(outcome.calls), refused, resets, others, (quick, slow), between, len(told))

    def cells(self, capacity: float) -> dict[str, object]:
        """As a line of a table."""
        row = self.row
        retry = "-" if self.retry_after_s is None else f"{self.retry_after_s[0]:.2f} to {self.retry_after_s[1]:.2f}"
        return {
            "offered": f"{self.times:g} x",
            "requests/s": round(row.arrivals_per_s or 0),
            "images/s": round(row.images_per_s),
            "of capacity": f"{row.images_per_s / capacity:.0%}",
            "p50": row.latency_ms["p50"],
            "p99": row.latency_ms["p99"],
            "max": row.latency_ms["max"],
            "refused": f"{self.refused / max(1, self.accepted + self.refused + self.resets):.0%}",
            "by HTTP/2": f"{self.resets / max(1, self.accepted + self.refused + self.resets):.0%}",
            "refusal p50": self.refusal_ms[0],
            "p99 of it": self.refusal_ms[1],
            "retry after, s": retry,
            "late p99": row.late_p99_ms,
            "server cores": row.server_cores,
            "client cores": row.client_cores,
            "RSS MiB": None if row.rss_mib is None else round(row.rss_mib),
            "other ends": sum(self.others.values()),
        }


def offers(config: OverloadConfig, server: Server, inside: InProcess) -> tuple[Row, list[Offer]]:
    """Measures the capacity, then offers multiples of it."""
    use_h2load = h2load.available()
    model = ask_model(server.target)
    bench = Bench(
        server.target, model, server.pid, config.seconds / CAPACITY_READINGS, inside=inside, use_h2load=use_h2load
    )
    in_flight = max(1, min(CAPACITY_IN_FLIGHT, config.max_queue // config.images // 2))
    case = Case(config.operation, "raw", "unary", config.images, in_flight)
    # The best of several: what another process takes of the machine meanwhile is no part of the capacity.
    capacity = max((bench.closed(case) for _ in range(CAPACITY_READINGS)), key=lambda row: row.images_per_s)
    if capacity.failures:
        raise ScriptError(f"the server refused some of {in_flight} requests at a time: {capacity.failures}")
    bench.seconds = config.seconds
    found = []
    for times in tqdm(config.times, desc="offering", unit="rate", leave=False, disable=None):
        row, outcome = bench.open(case, times * capacity.images_per_s / config.images)
        found.append(Offer.of(times, row, outcome))
    return capacity, found


def overload(config: OverloadConfig) -> bool:
    """Starts the server, measures and reports; whether every request got its answer or a refusal.

    Raises:
        ScriptError: A flag or the server can't be used; likewise EngineError.
    """
    config = config.resolved()
    inside = InProcess(Bundle.load(config.bundle))
    command = ["-m", "engine", "--bundle", config.bundle.resolve(), "--max-queue", config.max_queue]
    with tempfile.TemporaryDirectory() as folder:
        with Server([*command, "--log-level", "error"], Path(folder, "log")) as server:
            capacity, found = offers(config, server, inside)
        code, said = server.process.returncode, server.log
    per_s = capacity.images_per_s
    print(
        f"capacity: {per_s:.0f} images/s ({capacity.share:.0%} of in process), measured with {capacity.client}: "
        f"{capacity.case.in_flight} requests of {config.images} images at a time, "
        f"p99 {capacity.latency_ms['p99']:.1f} ms\n"
        f"queue of {config.max_queue} images: {config.max_queue / per_s * 1e3:.0f} ms of work per graph; "
        f"{len(os.sched_getaffinity(0))} cores for server and generator; times in ms, from the intended start\n"
    )
    print(markdown([offer.cells(per_s) for offer in found]), end="\n\n")
    for status, count in sum((Counter(offer.others) for offer in found), Counter[str]()).items():
        print(f"{count} x {status}")
    checks = {
        f"every request gets its answer, {REFUSAL} or {REFUSED_STREAM}": not any(offer.others for offer in found),
        "every refusal says when to come again": all(offer.refused == offer.retries_told for offer in found),
        "the server ends with exit code 0": code == 0,
    }
    for what, holds in checks.items():
        print(f"{'PASS' if holds else 'FAIL'}  {what}")
    if said:
        print(f"\nthe server's log:\n{said[-2000:]}")
    if config.json is not None:
        figures: dict[str, Any] = {
            "config": asdict(config),
            "capacity": asdict(capacity),
            "offers": [asdict(offer) for offer in found],
            "checks": checks,
        }
        write_json(config.json, figures)
    return all(checks.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 all held, 1 something didn't, 2 unusable input, 130 interrupted."""
    try:
        config = tyro.cli(OverloadConfig, args=arguments, prog="python benchmarks/overload.py", description=__doc__)
        return 0 if overload(config) else 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except (ScriptError, EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
