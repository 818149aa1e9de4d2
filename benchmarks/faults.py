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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import tyro
from serving import scenarios
from serving.answers import Answers
from serving.clients import Crowd
from serving.figures import markdown, write_json
from serving.menu import Kind, Menu
from serving.poisoned_server import SECRET
from serving.process import ROOT, ScriptError, Server

from engine.bundle import Bundle
from engine.errors import EngineError

Name = Literal["killed-clients", "half-sent", "deadline-storm", "sigterm", "sighup", "backend-raises", "slow-readers"]

PICTURES = 200
GRACE_S = 30.0


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
    json: Path | None = None
    """File to write all figures to."""
    quick: bool = False
    """A smoke test: less trouble, less load, shorter."""


@dataclass(frozen=True)
class Result:
    """What a scenario gave."""

    name: str
    seconds: float
    sent: int
    answered: int
    refused: dict[str, int]
    facts: list[str]
    checks: dict[str, bool]

    @property
    def passed(self) -> bool:
        """Whether everything held."""
        return all(self.checks.values())


def play(name: Name, config: FaultsConfig, answers: Answers) -> Result:
    """Runs one scenario with a server of its own.

    Raises:
        ScriptError: The server can't be started.
    """
    start = time.monotonic()
    menu = Menu(answers, 64, _kinds())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = config.bundle.resolve()
        if name == "sighup":
            bundle = Path(shutil.copytree(bundle, folder / "bundle"))
        command: list[object] = ["-m", "engine"]
        if name == "backend-raises":
            command = [ROOT / "benchmarks" / "serving" / "poisoned_server.py", folder / "failures"]
        command += ["--bundle", bundle, "--max-queue", 65536, "--grace-s", GRACE_S]
        with Server(command, folder / "log") as server:
            crowd = Crowd(server.target, menu, 4 if config.quick else config.clients)
            settle_s, scale = (0.3, 0.1) if config.quick else (config.settle_s, 1.0)
            scene = scenarios.Scene(server, menu, crowd, folder, settle_s, scale, GRACE_S)
            asyncio.run(_act(name, scene, bundle))
        scene.checks["it ends with exit code 0"] = server.process.returncode == 0
        scene.checks["its log has no trace but the backend's"] = _clean(server.log)
    tally = crowd.tally
    sent, answered = sum(tally.sent.values()), sum(tally.answered.values())
    seconds = time.monotonic() - start
    wrong = [f"wrong: {text}" for text in tally.wrong[:5]]
    return Result(name, seconds, sent, answered, dict(tally.statuses), scene.facts + wrong, scene.checks)


async def _act(name: Name, scene: scenarios.Scene, bundle: Path) -> None:
    acts: dict[Name, Any] = {
        "killed-clients": scenarios.killed_clients,
        "half-sent": scenarios.half_sent,
        "deadline-storm": scenarios.deadline_storm,
        "sigterm": scenarios.sigterm,
        "sighup": partial(scenarios.sighup, bundle=bundle),
        "backend-raises": partial(scenarios.poison, failures=scene.folder / "failures"),
        "slow-readers": scenarios.slow_readers,
    }
    await acts[name](scene)
    if name not in ("sigterm", "half-sent"):  # these end the server themselves
        await scene.require_alive()


def _kinds() -> tuple[Kind, ...]:
    return ("encode", "encode-files", "decode", "edit", "edit-latents", "edit-files")


def _clean(log: str) -> bool:
    """Whether every trace in a log is of the failure that was made on purpose."""
    return log.count("Traceback") == log.count(SECRET)


def faults(config: FaultsConfig) -> bool:
    """Plays the scenarios and reports; whether everything held.

    Raises:
        ScriptError: A flag or the bundle can't be used; likewise EngineError.
    """
    if config.clients < 1:
        raise ScriptError(f"--clients {config.clients}: must be at least 1")
    if not 0 <= config.settle_s < float("inf"):
        raise ScriptError(f"--settle-s {config.settle_s}: must be 0 or more")
    if config.json is not None and not config.json.parent.is_dir():
        raise ScriptError(f"--json {config.json}: there is no folder {config.json.parent}; make it first")
    answers = Answers(Bundle.load(config.bundle), PICTURES)
    results = []
    for name in config.scenarios:
        result = play(name, config, answers)
        results.append(result)
        refused = ", ".join(f"{count} {status}" for status, count in result.refused.items()) or "none"
        print(f"{'PASS' if result.passed else 'FAIL'}  {name} ({result.seconds:.0f} s)")
        print(f"      load: {result.sent} sent, {result.answered} answered right, refused: {refused}")
        for fact in result.facts:
            print(f"      {fact}")
        for what, holds in result.checks.items():
            print(f"      {'pass' if holds else 'FAIL'}  {what}", flush=True)
    rows = [
        {
            "scenario": result.name,
            "load: sent": result.sent,
            "answered right": result.answered,
            "refused": sum(result.refused.values()),
            "checks": f"{sum(result.checks.values())} of {len(result.checks)}",
            "": "PASS" if result.passed else "FAIL",
        }
        for result in results
    ]
    print("\n" + markdown(rows))
    if config.json is not None:
        write_json(config.json, {"config": asdict(config), "results": [asdict(result) for result in results]})
    return all(result.passed for result in results)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 all held, 1 something didn't, 2 unusable input, 130 interrupted."""
    try:
        config = tyro.cli(FaultsConfig, args=arguments, prog="python benchmarks/faults.py", description=__doc__)
        return 0 if faults(config) else 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except (ScriptError, EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
