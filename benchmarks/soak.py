"""Correctness under load: many clients, every RPC, requests of 1 to 200 images, every answer checked.

Starts a server of its own. Answers are compared with what the same bundle gives in this process; the tolerance is
measured beforehand, since rounding may depend on the batch that a request gets into. Exit code 1 if an answer is
wrong or missing, or if the server's memory grows by more than 10 % after the first 20 s.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from serving.answers import Answers
from serving.clients import Crowd, Tally
from serving.figures import markdown, write_json
from serving.menu import KINDS, Menu
from serving.process import ScriptError, Server, Usage
from tqdm import tqdm

from engine.bundle import Bundle
from engine.errors import EngineError

PICTURES = 400
SETTLED_S = 20.0
"""Memory must not grow from here on; caches and pools fill before."""
MAX_GROWTH = 0.1
_SETTLING_S = 10.0


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """How many clients, how long."""

    bundle: Path
    """Bundle folder to serve."""
    clients: int = 64
    """Clients, each with its own connection and one request after the other."""
    max_images: int = 200
    """Largest request, images."""
    minutes: float = 2.0
    """How long, minutes."""
    json: Path | None = None
    """File to write all figures to."""
    quick: bool = False
    """A smoke test of a second, with eight clients; memory is shown but not judged."""

    def resolved(self) -> SoakConfig:
        """Checked, and with `quick` worked out.

        Raises:
            ScriptError: Names the flag, its value and the mend.
        """
        if self.clients < 1:
            raise ScriptError(f"--clients {self.clients}: must be at least 1")
        if not 1 <= self.max_images <= PICTURES:
            raise ScriptError(f"--max-images {self.max_images}: must be from 1 to {PICTURES}")
        if not 0 < self.minutes < float("inf"):
            raise ScriptError(f"--minutes {self.minutes}: must be above 0")
        if self.json is not None and not self.json.parent.is_dir():
            raise ScriptError(f"--json {self.json}: there is no folder {self.json.parent}; make it first")
        return replace(self, clients=min(self.clients, 8), minutes=1 / 60) if self.quick else self


def growth(usage: Usage) -> float | None:
    """Growth of the peak memory after the first 20 s, against the 10 s before; None when the run was too short."""
    if usage.wall_s < 2 * SETTLED_S:
        return None
    before = usage.peak_between(SETTLED_S - _SETTLING_S, SETTLED_S)
    return usage.peak_between(SETTLED_S, float("inf")) / before - 1


def run(config: SoakConfig, crowd: Crowd, pid: int) -> Usage:
    """Lets the crowd loose for the given time; what the server took meanwhile."""
    seconds = config.minutes * 60
    end = time.monotonic() + seconds

    async def show(bar: Any) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(min(1.0, seconds / 10))
            bar.n = round(seconds - max(0.0, end - time.monotonic()))
            bar.set_postfix(answered=sum(crowd.tally.answered.values()), wrong=len(crowd.tally.wrong))

    async def both() -> None:
        with tqdm(total=round(seconds), unit="s", leave=False, disable=None) as bar:
            await asyncio.gather(crowd.run(lambda: time.monotonic() >= end), show(bar))

    with Usage(pid) as usage:
        asyncio.run(both())
    return usage


def verdicts(tally: Tally, usage: Usage, code: int | None) -> dict[str, bool]:
    """What must hold, and whether it did."""
    grown = growth(usage)
    checks = {
        "no answer is wrong or mixed up": not tally.wrong,
        "no request is lost": not tally.lost,
        "no request is refused": not tally.statuses,
        "the server ends with exit code 0": code == 0,
    }
    if grown is not None:
        checks["memory grows by at most 10 % after 20 s"] = grown <= MAX_GROWTH
    return checks


def report(menu: Menu, tally: Tally, usage: Usage, checks: dict[str, bool]) -> None:
    """Prints what happened."""
    tolerance, deviation = menu.answers.tolerance, menu.deviation
    rows = [{"RPC": name, "sent": sent, "answered right": tally.answered[name]} for name, sent in tally.sent.items()]
    print(markdown(rows), end="\n\n")
    print(f"{tally.describe()}; {tally.images} images in {usage.wall_s:.0f} s")
    for reason, count in tally.reasons.most_common(10):
        print(f"  {count} x {reason}")
    for wrong in tally.wrong[:10]:
        print(f"  wrong: {wrong}")
    print(
        f"tolerance {tolerance.levels} levels of 255, latents {tolerance.latents:.2g}; {deviation.inexact} of "
        f"{deviation.images} images were not bit for bit those computed here, by up to {deviation.levels} levels, "
        f"latents by up to {deviation.latents:.2g}"
    )
    ms = tally.calls.percentiles()
    print("latency, ms: " + ", ".join(f"{name.replace('_', '.')} {value:.0f}" for name, value in ms.items()))
    grown = growth(usage)
    said = "too short a run to judge growth" if grown is None else f"growth after {SETTLED_S:.0f} s {grown:+.1%}"
    print(f"server: {usage.cores:.2f} cores, peak memory {usage.peak_mib:.0f} MiB, {said}", end="\n\n")
    for what, holds in checks.items():
        print(f"{'PASS' if holds else 'FAIL'}  {what}")


def soak(config: SoakConfig) -> bool:
    """Starts the server, sends, checks and reports; whether everything held.

    Raises:
        ScriptError: The server can't be started; likewise EngineError.
    """
    config = config.resolved()
    bundle = Bundle.load(config.bundle)
    menu = Menu(Answers(bundle, PICTURES), config.max_images, KINDS)
    # Nothing may be refused here: overload is another script's business.
    room = str(2 * config.clients * config.max_images)
    command = ["-m", "engine", "--bundle", config.bundle.resolve(), "--max-queue", room, "--log-level", "warning"]
    with tempfile.TemporaryDirectory() as folder:
        with Server(command, Path(folder, "log")) as server:
            crowd = Crowd(server.target, menu, config.clients)
            usage = run(config, crowd, server.pid)
        code = server.process.returncode
        said = server.log
    checks = verdicts(crowd.tally, usage, code)
    cores = len(os.sched_getaffinity(0))
    print(f"{config.clients} clients, 1 to {config.max_images} images a request, {cores} cores for both sides\n")
    report(menu, crowd.tally, usage, checks)
    if said:
        print(f"\nthe server's log:\n{said[-2000:]}")
    if config.json is not None:
        tally = crowd.tally
        figures = {
            "config": asdict(config),
            "sent": tally.sent,
            "answered": tally.answered,
            "refused": tally.statuses,
            "wrong": tally.wrong,
            "images": tally.images,
            "tolerance": asdict(menu.answers.tolerance),
            "deviation": asdict(menu.deviation),
            "latency_ms": tally.calls.percentiles(),
            "histogram_ms": tally.calls.histogram(),
            "server": {"cores": usage.cores, "rss_mib": usage.rss_mib, "growth": growth(usage)},
            "checks": checks,
        }
        write_json(config.json, figures)
    return all(checks.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 all held, 1 something didn't, 2 unusable input, 130 interrupted."""
    try:
        config = tyro.cli(SoakConfig, args=arguments, prog="python benchmarks/soak.py", description=__doc__)
        return 0 if soak(config) else 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except (ScriptError, EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
