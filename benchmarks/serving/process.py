"""The server as a process: starting one, finding one, and what it takes of the machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).resolve().parents[2]

_SAMPLE_S = 0.1


class ScriptError(Exception):
    """Raise when a script can't do its work with what it was given."""


class Server:
    """A server process of this repository; entering its context waits until it serves, leaving it stops it.

    Args:
        arguments: What Python is to run, for example ["-m", "engine", "--bundle", ...]; `--port 0` is added.
        log: File for what it says on stderr.
    """

    def __init__(self, arguments: Sequence[object], log: Path) -> None:
        self._log = log
        self.target = ""
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, arguments), "--port", "0"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, without waiting."""
        self.process.send_signal(number)

    def wait(self, seconds: float) -> int | None:
        """Waits for its end; the exit code, or None when it still runs then."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def __enter__(self) -> Server:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("serving "):
                self.target = line.split()[-1]
                return self
        code = self.process.wait()
        self.process.stdout.close()
        raise ScriptError(f"the server ended with exit code {code}; it said: {self.log.strip()[-500:]}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        if self.wait(40) is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def listener(target: str) -> int:
    """Process id of what listens on HOST:PORT of this machine.

    Raises:
        ScriptError: Nobody does, or it belongs to another user.
    """
    port = int(target.rsplit(":", 1)[-1])
    for connection in psutil.net_connections("tcp"):
        address = connection.laddr
        if connection.status == psutil.CONN_LISTEN and address and address.port == port and connection.pid:
            return int(connection.pid)
    raise ScriptError(
        f"no process of yours listens on port {port} of this machine; give --pid, or --pid 0 to go without"
    )


@dataclass
class Usage:
    """What a process and its children took, measured over a `with` block.

    Attributes:
        pid: The process; 0 for none: then only the time is taken, and the rest is NaN.
        cpu_s: Processor time, seconds.
        wall_s: Length of the block, seconds.
        rss_mib: Pairs of seconds since the start and resident memory then, MiB.
    """

    pid: int
    cpu_s: float = 0.0
    wall_s: float = 0.0
    rss_mib: list[tuple[float, float]] = field(default_factory=list)

    @property
    def cores(self) -> float:
        """Cores that it kept busy, on average."""
        return self.cpu_s / self.wall_s if self.wall_s else 0.0

    @property
    def peak_mib(self) -> float:
        """Largest resident memory that was seen, MiB."""
        return max((rss for _, rss in self.rss_mib), default=float("nan"))

    def peak_between(self, start: float, end: float) -> float:
        """Largest resident memory between two times since the start of the block, MiB; NaN without a sample."""
        return max((rss for at, rss in self.rss_mib if start <= at < end), default=float("nan"))

    def __enter__(self) -> Usage:
        self._processes = family(self.pid)
        self._before = _cpu_seconds(self._processes)
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wall_s = time.monotonic() - self._start
        self.cpu_s = _cpu_seconds(self._processes) - self._before
        self._stop.set()
        self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.rss_mib.append((time.monotonic() - self._start, _rss_mib(self._processes)))
            if self._stop.wait(_SAMPLE_S):
                return


def family(pid: int) -> list[psutil.Process]:
    """A process and its children; none for 0.

    Raises:
        ScriptError: There is no such process.
    """
    if not pid:
        return []
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        raise ScriptError(f"there is no process {pid}; give --pid of the server, or 0 to go without") from None


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    total = 0.0 if processes else float("nan")
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _rss_mib(processes: Sequence[psutil.Process]) -> float:
    total = 0.0 if processes else float("nan")
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20
