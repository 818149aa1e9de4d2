"""What the process keeps: of freed memory as little, and of garbage searches as few, as can be."""

import ctypes
import gc
from contextlib import suppress

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 4 * 2**20  # pictures and messages, not batches of small images, which come and go all the time
# Calls leave next to no cycles behind, and with Python's own number it searches after every few of them.
_OBJECTS = 10_000


def give_freed_memory_back() -> None:
    """Has glibc give large blocks back as soon as they are freed; elsewhere it does nothing.

    By default it keeps, with each large block that is freed, larger ones from then on, each thread in a heap of its
    own, which what came after them holds fast: eight threads that decode large pictures in turn would hold as much
    memory as if they did it at once.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def collect_rarely() -> None:
    """Collects what is garbage, sets aside all that stays as long as the server, and searches more rarely from now."""
    gc.set_threshold(_OBJECTS, 20, 50)
    gc.collect()
    gc.freeze()
