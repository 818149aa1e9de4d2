"""What every script of this folder has in common: flags, errors as one line, exit codes, the machine, JSON."""

import datetime
import json
import math
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engine.backends import cores
from engine.proof.machine import cpu_model
from export import command
from export.bundle.provenance import versions
from export.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ServedFlags:
    """Flags of the scripts that start a server of their own."""

    bundle: Path
    """Bundle folder to serve."""
    json: Path | None = None
    """File to write all figures to."""


def main_of(config: Any, work: Callable[[Any], object], doc: str | None) -> Callable[..., int]:
    """The command of a script: reads the flags, works, and reports what can't be used in one line.

    `config` is the dataclass of the flags; `work` gives False if something that it checked did not hold.
    Exit codes: 0 all held, 1 something didn't, 2 unusable input, 130 interrupted.
    """
    return partial(command.run, config, work, prog=f"python benchmarks/{Path(sys.argv[0]).name}", doc=doc)


def require_positive(config: object, *names: str) -> None:
    """Refuses flags, numbers or lists of them, that are not above 0."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not 0 < number < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {number}: must be above 0")


def machine() -> dict[str, Any]:
    """Where and when this is measured: CPU, cores, load of the last minute, system, versions, date."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def summary(here: dict[str, Any]) -> str:
    """Two lines about a machine."""
    known = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    return f"{here['cpu']}, {here['cores']} cores, load {here['load']}, {here['date']}\n{known}"


def conclude(flags: ServedFlags, figures: dict[str, Any], checks: dict[str, bool], log: str) -> bool:
    """Writes the figures; prints whether each check held, and the end of the server's log. Returns whether all held."""
    write_json(flags.json, {"config": flags, **figures, "checks": checks})
    for what, holds in checks.items():
        print(f"{'PASS' if holds else 'FAIL'}  {what}")
    if log:
        print(f"\nthe server's log:\n{log[-2000:]}")
    return all(checks.values())


def write_json(path: Path | None, figures: Any) -> None:
    """Writes figures as JSON, dataclasses too, where a file is wanted; NaN, which JSON doesn't have, becomes null."""

    def plain(value: Any) -> Any:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    if path is not None:
        values = json.loads(json.dumps(figures, default=plain), parse_constant=lambda _: None)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
