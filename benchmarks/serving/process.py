"""Servers as processes: starting one, and stopping it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from export.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A server process of this repository; entering its context waits until it serves, leaving it stops it.

    `arguments` are what Python is to run, such as ["-m", "engine", "--bundle", ...]; `--port` is added. `said` is its
    first line on stdout, and `target` the last word of that: HOST:PORT.
    """

    def __init__(self, arguments: Sequence[object], port: int = 0) -> None:
        self.said = self.target = ""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (read as long as there is a server)
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments), "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        said = os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0)  # leaves its place in the file
        return said.decode(errors="replace")

    def wait(self, seconds: float) -> int | None:
        """Waits for its end. Returns the exit code, or None if it still runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def __enter__(self) -> "Server":
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        if self.said:
            self.target = self.said.split()[-1]
            return self
        with self.process:
            code = self.process.wait()
        raise InputError(f"the server ended with exit code {code}; it said: {self.log.strip()[-500:]}")

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.terminate()
            if self.wait(40) is None:
                self.process.kill()
