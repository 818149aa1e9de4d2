"""glibc's allocator, which otherwise keeps what each thread has freed for that thread."""

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # of malloc.h
_ARENAS = 1


def share_freed_memory() -> None:
    """Has all threads share one arena, as MALLOC_ARENA_MAX=1 does; of other C libraries, nothing.

    By default each thread has one of its own: eight threads that decode large pictures in turn hold as much memory as
    if they did it at once.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
