"""glibc's allocator, which otherwise keeps the pictures that were decoded on each thread."""

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BYTES = 2 * 2**20


def return_large_blocks() -> None:
    """Has blocks of 2 MiB and more given back to the system when they are freed; of other C libraries, nothing.

    glibc raises its threshold to the largest block that was freed, up to 32 MiB, and keeps what is smaller for the
    thread that had it: eight threads that decode large pictures in turn hold as much as if they did it at once.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
