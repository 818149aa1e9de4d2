"""Files that an operator names, read again while the server serves."""

import errno
import os
import stat
from pathlib import Path


def open_regular(path: str | Path) -> int:
    """Opens a file for reading; gives its descriptor.

    Others than regular files would hold up whoever opens or reads them, for as long as nobody writes a pipe, or without
    end.

    Raises:
        OSError: When it can't be opened, or is a pipe, a device, a socket or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def read_bytes(path: str | Path) -> bytes:
    """The contents of a regular file.

    Raises:
        OSError: As `open_regular`.
    """
    with open(open_regular(path), "rb") as file:
        return file.read()


def read_text(path: str | Path) -> str:
    """The text of a regular file in UTF-8, without the byte order mark that some editors write.

    Raises:
        OSError: As `open_regular`.
        UnicodeDecodeError: When it is no UTF-8.
    """
    return read_bytes(path).decode("utf-8-sig")
