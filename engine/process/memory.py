"""What the process keeps: of freed memory as little, and of garbage searches as few, as can be."""

import ctypes
import gc
from contextlib import suppress

_M_ARENA_MAX = -8  # of glibc's malloc.h
# Calls leave next to no cycles behind, and with Python's own number it searches after every few of them.
_OBJECTS = 10_000


def share_freed_memory() -> None:
    """Has all threads share one arena, as MALLOC_ARENA_MAX=1 does; of other C libraries, nothing.

    By default each thread has one of its own: eight threads that decode large pictures in turn hold as much memory as
    if they did it at once.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def collect_rarely() -> None:
    """Collects what is garbage, sets aside all that stays as long as the server, and searches more rarely from now."""
    gc.set_threshold(_OBJECTS, 20, 50)
    gc.collect()
    gc.freeze()
