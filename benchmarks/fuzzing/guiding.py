"""Runs the coverage-guided fuzzer in processes of its own, and reads its figures."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TARGETS = ("images", "messages")
_SCRIPT = Path(__file__).with_name("guided.py")
_ONE_INPUT_S = 20
_MEMORY_MIB = 1024


class Figures(NamedTuple):
    """What came of one target.

    Attributes:
        target: One of `TARGETS`.
        inputs: How many inputs it was given.
        edges: Branches of Python code that they reached.
        kept: Inputs that reached something new.
        peak_mib: Most memory of the process, MiB.
        fault: What ended it, its last lines; "" when nothing did.
    """

    target: str
    inputs: int
    edges: int
    kept: int
    peak_mib: int
    fault: str


class Guided:
    """One run of the fuzzer, from its construction on.

    Args:
        target: One of `TARGETS`.
        bundle: Whose requests it reads.
        inputs: How many to try.
        seed: The same gives the same inputs.
    """

    def __init__(self, target: str, bundle: Path, inputs: int, seed: int) -> None:
        self._target = target
        self._folder = tempfile.TemporaryDirectory()
        flags = {
            "runs": inputs,
            "seed": seed + 1,  # 0 stands for a random one
            "timeout": _ONE_INPUT_S,
            "rss_limit_mb": _MEMORY_MIB,
            "print_final_stats": 1,
            "artifact_prefix": f"{self._folder.name}/",
        }
        corpus = Path(self._folder.name) / "corpus"
        corpus.mkdir()
        command: Sequence[object] = (sys.executable, _SCRIPT, target, bundle, corpus)
        self._process = subprocess.Popen(
            [*map(str, command), *(f"-{name}={value}" for name, value in flags.items())],
            stdout=subprocess.PIPE,  # where atheris says which exception it was
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def figures(self) -> Figures:
        """Waits for its end."""
        with self._folder:
            said, _ = self._process.communicate()

        def number(pattern: str) -> int:
            found = re.findall(pattern, said)
            return int(found[-1]) if found else 0

        lines = [line for line in said.splitlines() if not line.startswith("#")]
        return Figures(
            self._target,
            number(r"number_of_executed_units:\s*(\d+)"),
            number(r"cov: (\d+)"),
            number(r"new_units_added:\s*(\d+)"),
            number(r"peak_rss_mb:\s*(\d+)"),
            "\n".join(lines[-25:]) if self._process.returncode else "",
        )

    def stop(self) -> None:
        """Ends it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()
