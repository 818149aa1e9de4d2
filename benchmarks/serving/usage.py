"""What processes take of the machine, found by their id or by where they listen."""

import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

_SAMPLE_S = 0.1


def listener(target: str) -> int:
    """Process id of what listens on HOST:PORT of this machine; 0 where none does that may be looked at."""
    port = int(target.rsplit(":", 1)[-1])
    for connection in psutil.net_connections("tcp"):
        address = connection.laddr
        if connection.status == psutil.CONN_LISTEN and address and address.port == port and connection.pid:
            return int(connection.pid)
    return 0


@dataclass
class Usage:
    """What a process and its children took, measured over a `with` block."""

    pid: int  # the process; 0 for none: then only the time is taken, and the rest is NaN
    cpu_s: float = 0.0  # processor time, seconds
    wall_s: float = 0.0  # length of the block, seconds
    # pairs of seconds since the start and resident memory then, MiB
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

    def __enter__(self) -> "Usage":
        self._processes = process_tree(self.pid)
        self._before, _ = _taken(self._processes)
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.monotonic() - self._start
        self.cpu_s = _taken(self._processes)[0] - self._before
        self._stop.set()
        self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.rss_mib.append((time.monotonic() - self._start, _taken(self._processes)[1]))
            if self._stop.wait(_SAMPLE_S):
                return


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and its children; none for 0."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []


def _taken(processes: Sequence[psutil.Process]) -> tuple[float, float]:
    """Processor time, seconds, and resident memory, MiB, of those processes that still are; NaN without any."""
    cpu_s = rss_mib = 0.0 if processes else math.nan
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            cpu_s += times.user + times.system
            rss_mib += process.memory_info().rss / 2**20
    return cpu_s, rss_mib
