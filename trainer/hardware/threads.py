"""How many threads PyTorch computes with: as many as there are cores that nobody else uses.

A step is thousands of short parallel loops, each of which ends when its last thread does. Where another process has one
of the cores, all threads wait, loop after loop, until that core's thread has its turn: two threads on one free core and
one busy core train many times slower than one thread. GNU OpenMP's other wait policies don't help: threads that sleep
instead of spinning make a quiet machine a third slower and leave a busy one several times slower than one thread.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from joblib import cpu_count  # knows of a container's quota, too

logger = logging.getLogger(__name__)

WATCHED_SECONDS = 0.5
"""Time over which the cores' load is measured."""


def free_cores() -> float:
    """The cores of this process that other processes leave to it, as the last half second showed; at least 1.

    To be asked while this process itself does nothing.
    """
    cores = os.sched_getaffinity(0)
    loads = psutil.cpu_percent(WATCHED_SECONDS, percpu=True)
    busy = sum(load for core, load in enumerate(loads) if core in cores) / 100
    return max(1.0, min(len(cores) - busy, float(cpu_count())))


def choose(asked: int | None, recorded: int | None = None) -> int:
    """The number of threads: the one asked for, else the one recorded, else OpenMP's, else that of the free cores.

    Recorded is that of a run that goes on, whose rounding depends on it.
    """
    if asked or recorded:
        return asked or recorded or 1
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        return torch.get_num_threads()
    cores, threads = cpu_count(), round(free_cores())
    if threads < cores:
        logger.info(
            "this machine is busy: %d of its %d cores are free, so %d thread(s) compute; --threads N decides otherwise",
            *(threads, cores, threads),
        )
    return threads


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Has PyTorch compute with this number of threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
