"""Overload: requests arrive at 1, 2, 3 and 5 times what the server can do (open loop, Poisson).

Starts a server of its own, measures its capacity in a closed loop, then offers multiples of it. Throughput should hold,
what is accepted should be answered in bounded time, and the rest be refused at once, with the time to wait. Exit code 1
if a request gets anything but its answer or a refusal (RESOURCE_EXHAUSTED; HTTP/2's REFUSED_STREAM beyond the calls
that a connection may have open), or if the server doesn't end with exit code 0.
"""

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

from script import ServedFlags, conclude, main_of, require_positive
from serving.bench import Bench, Row
from serving.figures import Calls, markdown
from serving.generator import REFUSED_STREAM, Outcome
from serving.process import Server
from serving.reference import Reference
from serving.requests import Case, ask_model
from tqdm import tqdm

from engine.backends import cores
from engine.bundle import Bundle
from export.errors import InputError

REFUSAL = "RESOURCE_EXHAUSTED"
CAPACITY_IN_FLIGHT = 16
CAPACITY_READINGS = 3


@dataclass(frozen=True, kw_only=True)
class OverloadConfig(ServedFlags):
    """What is offered, and for how long."""

    images: int = 16
    """Images per request, an edit of raw pixels: large ones let this generator offer many times the capacity from the
    same cores."""
    times: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    """Arrivals, as multiples of the measured capacity."""
    max_queue: int = 1024
    """The server's --max-queue, images: with the rate, it bounds how long an accepted request waits."""
    seconds: float = 10.0
    """How long requests arrive at each rate, seconds."""


def offer(times: float, row: Row, outcome: Outcome) -> dict[str, Any]:
    """What became of one rate of arrivals, a multiple of the capacity.

    `row` has the figures of the accepted requests, whose latency counts from the intended start; `refused` is the
    number of refusals for want of room, `resets` of calls beyond --max-concurrent-streams of a connection, which
    HTTP/2 refuses; `others` are the requests with any other end, by status.
    """
    others, told = dict(outcome.failures), outcome.retry_after_s
    return {
        "times": times,
        "row": row,
        "accepted": len(outcome.answered),
        "refused": others.pop(REFUSAL, 0),
        "resets": others.pop(REFUSED_STREAM, 0),
        "others": others,
        "refusal_ms": Calls.of(outcome.refused).percentiles(),
        "retry_after_s": (min(told), max(told)) if told else None,
        "retries_told": len(told),
    }


def cells(found: dict[str, Any], capacity: float) -> dict[str, object]:
    """An offer as a line of a table."""
    row, ended = found["row"], max(1, found["accepted"] + found["refused"] + found["resets"])
    return {
        "offered": f"{found['times']:g} x",
        "requests/s": round(row.arrivals_per_s),
        "images/s": round(row.images_per_s),
        "of capacity": f"{row.images_per_s / capacity:.0%}",
        **{name: row.latency_ms[name] for name in ("p50", "p99", "max")},
        "refused": f"{found['refused'] / ended:.0%}",
        "by HTTP/2": f"{found['resets'] / ended:.0%}",
        "refusal p50": found["refusal_ms"]["p50"],
        "p99 of it": found["refusal_ms"]["p99"],
        "retry after, s": found["retry_after_s"] and "{:.2f} to {:.2f}".format(*found["retry_after_s"]),
        "late p99": row.late_p99_ms,
        "server cores": row.server_cores,
        "client cores": row.client_cores,
        "RSS MiB": round(row.rss_mib),
        "other ends": sum(found["others"].values()),
    }


def offers(config: OverloadConfig, server: Server, reference: Reference) -> tuple[Row, list[dict[str, Any]]]:
    """Measures the capacity, then offers multiples of it."""
    model, seconds = ask_model(server.target), config.seconds
    bench = Bench(server.target, model, server.process.pid, seconds / CAPACITY_READINGS, reference)
    in_flight = max(1, min(CAPACITY_IN_FLIGHT, config.max_queue // config.images // 2))
    case = Case("edit", "raw", "unary", config.images, in_flight)
    # The best of several: what another process takes of the machine meanwhile is no part of the capacity.
    capacity = max((bench.closed(case) for _ in range(CAPACITY_READINGS)), key=lambda row: row.images_per_s)
    if capacity.failures:
        raise InputError(f"the server refused some of {in_flight} requests at a time: {capacity.failures}")
    bench.seconds = seconds
    per_s = capacity.images_per_s / config.images
    rates = tqdm(config.times, desc="offering", unit="rate", leave=False, disable=None)
    return capacity, [offer(times, *bench.open(case, times * per_s)) for times in rates]


def overload(config: OverloadConfig) -> bool:
    """Starts the server, measures and reports. Returns whether every request got its answer or a refusal."""
    require_positive(config, "images", "seconds", "times")
    if config.max_queue < 2 * config.images:
        raise InputError(f"--max-queue {config.max_queue}: must hold two requests of {config.images} images at least")
    reference = Reference(Bundle.load(config.bundle))
    command = ["-m", "engine", "--bundle", config.bundle.resolve(), "--max-queue", config.max_queue]
    with Server([*command, "--log-level", "error"]) as server:
        capacity, found = offers(config, server, reference)
    per_s = capacity.images_per_s
    print(
        f"capacity: {per_s:.0f} images/s ({capacity.share:.0%} of in process): {capacity.case.in_flight} requests of "
        f"{config.images} images at a time, p99 {capacity.latency_ms['p99']:.1f} ms in that closed loop\n"
        f"queue of {config.max_queue} images: {config.max_queue / per_s * 1e3:.0f} ms of work per graph; "
        f"{cores()} cores for server and generator; times in ms, from the intended start\n"
    )
    print(markdown([cells(one, per_s) for one in found]), end="\n\n")
    for status, count in sum((Counter[str](one["others"]) for one in found), Counter[str]()).items():
        print(f"{count} x {status}")
    checks = {
        f"every request gets its answer, {REFUSAL} or {REFUSED_STREAM}": not any(one["others"] for one in found),
        "every refusal says when to come again": all(one["refused"] == one["retries_told"] for one in found),
        "the server ends with exit code 0": server.process.returncode == 0,
    }
    return conclude(config, {"capacity": capacity, "offers": found}, checks, server.log)


main = main_of(OverloadConfig, overload, __doc__)

if __name__ == "__main__":
    sys.exit(main())
