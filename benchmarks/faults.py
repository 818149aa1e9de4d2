"""Faults: what happens to accepted requests when clients, messages, deadlines, signals or the backend go wrong.

Each scenario starts a server of its own, puts load on it whose every answer is checked, and makes trouble. Exit code 1
if something that was accepted is lost or wrong, or if anything hangs.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from script import ROOT, require_positive, run, write_json
from serving.clients import Crowd
from serving.orders import Orders
from serving.poisoned_server import SECRET
from serving.process import Server
from serving.scenarios import GRACE_S, ROOM, SCENARIOS, Name, Scene

from engine.bundle import Bundle

PICTURES = 200
MAX_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """Which faults, under how much load."""

    bundle: Path
    """Bundle folder to serve."""
    scenarios: tuple[Name, ...] = get_args(Name)
    """Which, in which order."""
    clients: int = 16
    """Clients of the load, each with its own connection and one request after the other."""
    settle_s: float = 2.0
    """How long the load runs undisturbed before and after the trouble, seconds."""
    scale: float = 1.0
    """Factor on how much trouble is made."""
    json: Path | None = None
    """File to write all figures to."""


def play(name: Name, config: FaultsConfig, orders: Orders) -> tuple[Scene, float]:
    """Runs one scenario with a server of its own; how long that took, seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder, bundle = Path(scratch), config.bundle.resolve()
        if name == "sighup":
            bundle = Path(shutil.copytree(bundle, folder / "bundle"))
        command: list[object] = ["-m", "engine"]
        if name == "backend-raises":
            command = [ROOT / "benchmarks" / "serving" / "poisoned_server.py", folder / "failures"]
        command += ["--bundle", bundle, *ROOM, "--grace-s", GRACE_S]
        with Server(command) as server:
            scene = Scene(
                server, bundle, Crowd(server.target, orders, config.clients), folder, config.settle_s, config.scale
            )
            asyncio.run(SCENARIOS[name](scene))
        scene.checks["it ends with exit code 0"] = server.process.returncode == 0
        # Every trace in it is of the failure that was made on purpose.
        scene.checks["its log has no trace but the backend's"] = server.log.count("Traceback") == server.log.count(
            SECRET
        )
    scene.facts += [f"wrong: {text}" for text in scene.crowd.tally.wrong[:5]]
    return scene, time.monotonic() - start


def faults(config: FaultsConfig) -> bool:
    """Plays the scenarios and reports; whether everything held."""
    require_positive(config, "clients", "settle_s", "scale")
    orders = Orders(Bundle.load(config.bundle), PICTURES, MAX_IMAGES)
    results = []
    for name in config.scenarios:
        scene, seconds = play(name, config, orders)
        tally, passed = scene.crowd.tally, all(scene.checks.values())
        print(f"{'PASS' if passed else 'FAIL'}  {name} ({seconds:.0f} s)\n      load: {tally.describe()}")
        for fact in scene.facts:
            print(f"      {fact}")
        for what, holds in scene.checks.items():
            print(f"      {'pass' if holds else 'FAIL'}  {what}", flush=True)
        results.append(
            {
                "name": name,
                "seconds": seconds,
                "sent": tally.sent.total(),
                "answered": tally.answered.total(),
                "refused": tally.statuses,
                "facts": scene.facts,
                "checks": scene.checks,
                "passed": passed,
            }
        )
    failed = [str(result["name"]) for result in results if not result["passed"]]
    print(f"\nFAIL: {', '.join(failed)}" if failed else "\nPASS")
    write_json(config.json, {"config": asdict(config), "results": results})
    return not failed


main = partial(run, FaultsConfig, faults, __doc__)

if __name__ == "__main__":
    sys.exit(main())
