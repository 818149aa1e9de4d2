"""Runs the scripts of benchmarks/."""

import subprocess
import sys

from servers import ROOT


def benchmark(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Runs one to its end, at the root; the result has its exit code and output."""
    return subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def require_refused(result: "subprocess.CompletedProcess[str]", message: str) -> None:
    """Input that can't be used is exit code 2 and one line that begins like this."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
