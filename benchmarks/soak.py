"""Correctness under load: many clients, every RPC, requests of 1 to 200 images, every answer checked.

Starts a server of its own. Answers are compared with what the same bundle gives in this process; the tolerance is
measured beforehand, since rounding may depend on the batch that a request gets into. Exit code 1 if an answer is
wrong or missing, or if the server's memory grows by more than 10 % after the first 20 s.
"""

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import sys
import time
from dataclasses import dataclass

from script import ServedFlags, conclude, main_of, require_positive
from serving.clients import Load, Stats
from serving.figures import markdown
from serving.process import Server
from serving.usage import Usage
from serving.workload import Workload
from tqdm import tqdm

from engine.backends import cores
from engine.bundle import Bundle

PICTURES = 400
MAX_IMAGES = 200
"""Largest request."""
SETTLED_S = 20.0  # memory must not grow from here on; caches and pools fill before
MAX_GROWTH = 0.1
_SETTLING_S = 10.0


@dataclass(frozen=True, kw_only=True)
class SoakConfig(ServedFlags):
    """How many clients, how long."""

    clients: int = 64
    """Clients, each with its own connection and one request after the other."""
    minutes: float = 2.0
    """How long, minutes; memory is judged in runs of 40 s and more."""


def growth(usage: Usage) -> float | None:
    """Growth of the peak memory after the first 20 s, against the 10 s before; None when the run was too short."""
    if usage.wall_s < 2 * SETTLED_S:
        return None
    before = usage.peak_between(SETTLED_S - _SETTLING_S, SETTLED_S)
    return usage.peak_between(SETTLED_S, float("inf")) / before - 1


async def send(load: Load, seconds: float) -> None:
    """Runs the load for `seconds`."""
    end = time.monotonic() + seconds
    running = asyncio.ensure_future(load.run(lambda: time.monotonic() >= end))
    with tqdm(total=round(seconds), unit="s", leave=False, disable=None) as bar:
        while not (await asyncio.wait({running}, timeout=1.0))[0]:
            bar.update()
            bar.set_postfix(answered=load.stats.answered.total(), wrong=len(load.stats.wrong))
    await running


def report(workload: Workload, stats: Stats, usage: Usage) -> None:
    """Prints what happened."""
    tolerance, deviation, grown = workload.tolerance, workload.deviation, growth(usage)
    rows = [{"RPC": name, "sent": sent, "answered right": stats.answered[name]} for name, sent in stats.sent.items()]
    print(markdown(rows), end="\n\n")
    print(f"{stats.describe()}; {stats.images} images in {usage.wall_s:.0f} s")
    for line in (*stats.common_reasons(10), *(f"wrong: {text}" for text in stats.wrong[:10])):
        print(f"  {line}")
    print("largest difference from what was computed here, and how much is tolerated: "
          f"{deviation['levels']:g} and {tolerance['levels']:g} of 255 levels, "
          f"{deviation['latents']:.2g} and {tolerance['latents']:.2g} in latents")  # fmt: skip
    ms = stats.calls.percentiles()
    print("latency, ms: " + ", ".join(f"{name.replace('_', '.')} {value:.0f}" for name, value in ms.items()))
    said = "too short a run to judge growth" if grown is None else f"growth after {SETTLED_S:.0f} s {grown:+.1%}"
    print(f"server: {usage.cores:.2f} cores, peak memory {usage.peak_mib:.0f} MiB, {said}", end="\n\n")


def soak(config: SoakConfig) -> bool:
    """Starts the server, sends, checks and reports. Returns whether everything held."""
    require_positive(config, "clients", "minutes")
    workload = Workload(Bundle.load(config.bundle), PICTURES, MAX_IMAGES)
    # Nothing may be refused here: overload is another script's business.
    room = 2 * config.clients * MAX_IMAGES
    command = ["-m", "engine", "--bundle", config.bundle.resolve(), "--max-queue", room, "--log-level", "warning"]
    with Server(command) as server, Usage(server.process.pid) as usage:
        load = Load(server.target, workload, config.clients)
        asyncio.run(send(load, config.minutes * 60))
    stats, grown = load.stats, growth(usage)
    print(f"{config.clients} clients, 1 to {MAX_IMAGES} images a request, {cores()} cores for both sides\n")
    report(workload, stats, usage)
    figures = {
        "sent": stats.sent,
        "answered": stats.answered,
        "refused": stats.statuses,
        "wrong": stats.wrong,
        "images": stats.images,
        "tolerance": workload.tolerance,
        "deviation": workload.deviation,
        "latency_ms": stats.calls.percentiles(),
        "histogram_ms": stats.calls.histogram(),
        "server": {"cores": usage.cores, "rss_mib": usage.rss_mib, "growth": grown},
    }
    checks = {
        "no answer is wrong or mixed up": not stats.wrong,
        "no request is lost": not stats.lost,
        "no request is refused": not stats.statuses,
        "the server ends with exit code 0": server.process.returncode == 0,
    }
    if grown is not None:
        checks["memory grows by at most 10 % after 20 s"] = grown <= MAX_GROWTH
    return conclude(config, figures, checks, server.log)


main = main_of(SoakConfig, soak, __doc__)

if __name__ == "__main__":
    sys.exit(main())
