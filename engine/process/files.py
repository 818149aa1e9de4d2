"""Files that somebody names: read while others may change them, and written as a whole or not at all."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


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


def version_of(path: Path | os.DirEntry[str]) -> tuple[int, int, int] | None:
    """Changes when a file does; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


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


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file, which has all of its content from then on; whatever goes wrong, it is as it was before.

    Raises:
        OSError: When it can't be written.
    """
    part = path.with_name(f".{secrets.token_hex(4)}.part")  # the file's own name may have no room for more
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def reading(path: str | Path, what: str, failure: type[Exception]) -> Iterator[None]:
    """To be entered around reading a safetensors file that should be `what`, for example "a prior".

    What goes wrong becomes a `failure` that names the file; where that is raised inside, the file is put in front.
    """
    try:
        yield
    except FileNotFoundError:
        raise failure(f"{path} does not exist") from None
    except KeyError as error:
        raise failure(f"{path} is not {what}: it lacks {error}") from None
    except failure as error:
        raise failure(f"{path}: {error}") from None
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise failure(f"{path} can't be read as {what}: {error}") from error
