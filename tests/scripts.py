"""Commands: scripts of benchmarks/ as processes, others within this one, and those that a test ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest
from servers import ROOT

Result = subprocess.CompletedProcess[str]


def benchmark(name: str, *arguments: object) -> Result:
    """Runs one to its end, at the root; the result has its exit code and output."""
    return subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def call(main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """The result of a command's main function, without the seconds that a process takes to import torch."""
    words = [str(argument) for argument in arguments]
    return Result(words, main(words), *capsys.readouterr())


def require_refused(result: Result, message: str = "") -> None:
    """Input that can't be used is exit code 2 and one line that begins like this."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith(f"error: {message}"), result.stderr
    assert result.stderr.count("\n") == 1


@contextmanager
def running(command: Sequence[object]) -> "Iterator[subprocess.Popen[str]]":
    """A command in a process group of its own, of which nothing is left at the end, however the test ends."""
    words = list(map(str, command))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
