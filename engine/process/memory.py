"""What the process keeps of freed memory: as little as can be."""

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # of glibc's malloc.h


def share_freed_memory() -> None:
    """Has all threads share one arena, as MALLOC_ARENA_MAX=1 does; of other C libraries, nothing.

    By default each thread has one of its own: eight threads that decode large pictures in turn hold as much memory as
    if they did it at once.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
