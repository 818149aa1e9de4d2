"""Faults: what happens to accepted requests when clients, messages, deadlines, signals or the backend go wrong.

Each scenario starts a server of its own, puts load on it whose every answer is checked, and injects a fault. Exit code
1 if something that was accepted is lost or wrong, or if anything hangs.
"""

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from script import ServedFlags, main_of, require_positive, write_json
from serving.clients import Load
from serving.poisoned_server import SECRET
from serving.process import ROOT, Server
from serving.scenarios import GRACE_S, ROOM, SCENARIOS, FaultTest
from serving.workload import Workload

from engine.bundle import Bundle
from export.errors import InputError

PICTURES = 200
MAX_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class FaultsConfig(ServedFlags):
    """Which faults, under how much load."""

    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    """Which, in which order."""
    clients: int = 16
    """Clients of the load, each with its own connection and one request after the other."""
    settle_s: float = 2.0
    """How long the load runs undisturbed before and after the fault, seconds."""
    scale: float = 1.0
    """Factor on how much of a fault is injected."""


def play(name: str, config: FaultsConfig, workload: Workload) -> tuple[FaultTest, float]:
    """Runs one scenario with a server of its own. Returns it, and the seconds that it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = Path(shutil.copytree(config.bundle, folder / "bundle"))  # SIGHUP's changes are the scenario's own
        command: list[object] = ["-m", "engine"]
        if name == "backend-raises":
            command = [ROOT / "benchmarks" / "serving" / "poisoned_server.py", folder / "failures"]
        command += ["--bundle", bundle, *ROOM, "--grace-s", GRACE_S]
        with Server(command) as server:
            load = Load(server.target, workload, config.clients)
            test = FaultTest(server, bundle, load, folder, config.settle_s, config.scale)
            asyncio.run(SCENARIOS[name](test))
        test.checks["it ends with exit code 0"] = server.process.returncode == 0
        # Every trace in it is of the failure that was made on purpose.
        log = server.log
        test.checks["its log has no trace but the backend's"] = log.count("Traceback") == log.count(SECRET)
    test.facts += [f"wrong: {text}" for text in test.load.stats.wrong[:5]]
    return test, time.monotonic() - start


def faults(config: FaultsConfig) -> bool:
    """Runs the scenarios and reports. Returns whether everything held."""
    require_positive(config, "clients", "settle_s", "scale")
    if unknown := set(config.scenarios) - set(SCENARIOS):
        raise InputError(f"--scenarios {' '.join(sorted(unknown))}: there are {', '.join(SCENARIOS)}")
    workload = Workload(Bundle.load(config.bundle), PICTURES, MAX_IMAGES)
    results = []
    for name in config.scenarios:
        test, seconds = play(name, config, workload)
        stats, passed = test.load.stats, all(test.checks.values())
        print(f"{'PASS' if passed else 'FAIL'}  {name} ({seconds:.0f} s)\n      load: {stats.describe()}")
        for fact in test.facts:
            print(f"      {fact}")
        for what, holds in test.checks.items():
            print(f"      {'pass' if holds else 'FAIL'}  {what}", flush=True)
        results.append(
            {
                "name": name,
                "seconds": seconds,
                "sent": stats.sent.total(),
                "answered": stats.answered.total(),
                "refused": stats.statuses,
                "facts": test.facts,
                "checks": test.checks,
                "passed": passed,
            }
        )
    failed = [str(result["name"]) for result in results if not result["passed"]]
    print(f"\nFAIL: {', '.join(failed)}" if failed else "\nPASS")
    write_json(config.json, {"config": config, "results": results})
    return not failed


main = main_of(FaultsConfig, faults, __doc__)

if __name__ == "__main__":
    sys.exit(main())
