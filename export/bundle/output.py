"""The place of a bundle on disk: free or replaceable, staged beside, and taken in one step."""

import errno
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from engine.bundle import MANIFEST
from export.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


def check_place(out: Path, force: bool) -> None:
    """Lets `out` pass if it is free and can be made, or with `force` if it is a bundle and nothing else.

    Raises:
        InputError: otherwise.
    """
    listed = _files_of_bundle(out)
    if listed is None:
        check_free(out, taken="exists and is not a bundle")
        return
    if not force:
        raise InputError(f"--out {out}: holds a bundle already; add --force to replace it, or choose another place")
    if out.is_symlink():
        raise InputError(f"--out {out}: is a link to a bundle; name the folder itself, {out.resolve()}")
    if strangers := sorted({entry.name for entry in out.iterdir()} - listed):
        raise InputError(
            f"--out {out}: beside the bundle it holds {', '.join(strangers)}, which --force would delete; "
            "move that away, or choose another place"
        )


def check_free(place: Path, flag: str = "--out", taken: str = "exists already") -> None:
    """Lets `place` pass if nothing is there and it can be made; `flag` is what errors call it, `taken` what is wrong.

    Raises:
        InputError: otherwise.
    """
    parent = place.parent
    try:
        if place.exists() or place.is_symlink():
            raise InputError(f"{flag} {place}: {taken}; choose another place")
        if place.name in ("", ".."):
            raise InputError(f"{flag} {place}: is not the name of a new folder; choose another place")
        parent = _existing(parent)
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise _unwritable(place, parent, error, flag) from error


def require_space(folder: Path, bytes_needed: int) -> None:
    """Sees that the disk of `folder`, which need not exist yet, has room for so many bytes.

    Raises:
        InputError: it has not.
    """
    disk = shutil.disk_usage(_existing(folder))
    if disk.total and disk.free < bytes_needed:  # some file systems do not say
        raise InputError(
            f"{folder}: needs about {_megabytes(bytes_needed)}, and its disk has {_megabytes(disk.free)} free; "
            "free some space, or choose another place"
        )


@contextmanager
def staging(out: Path, flag: str = "--out") -> Iterator[Path]:
    """A fresh folder beside `out`, on the same file system.

    Whatever is left in it at the end is removed, and so are the parents of `out` that were made for it if `out` did
    not come to be.

    Raises:
        InputError: there is no way to write there, or the disk is full before the end of the block.
    """
    # Not named by the process: one that was killed may have had the same number.
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        _remove_empty(made)
        raise _unwritable(out, out.parent, error, flag) from error
    try:
        yield folder
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        raise InputError(
            f"{flag} {out}: the disk is full ({_reason(error)}) after {_megabytes(written)} of it; "
            "free some space, or choose another place"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(made)


def check_apart(out: Path, other: Path, flag: str) -> None:
    """Lets two new folders pass of which neither lies in the other; `flag` is what errors call the other one.

    Raises:
        InputError: one does.
    """
    mine, theirs = out.resolve(), other.resolve()
    if mine == theirs or mine in theirs.parents or theirs in mine.parents:
        raise InputError(f"{flag} {other}: lies in --out {out}, or that in it; choose a place beside it")


def publish(folder: Path, out: Path, *, force: bool = True, flag: str = "--out") -> None:
    """Renames the finished folder to `out`; with `force` an old bundle there goes, once the new one stands.

    Raises:
        InputError: something else has come to be at `out` in the meantime.
    """
    if not force or _files_of_bundle(out) is None:
        try:
            folder.rename(out)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise InputError(f"{flag} {out}: was made by somebody else meanwhile; choose another place") from error
        return
    old = folder.with_suffix(".old")
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _unwritable(place: Path, parent: Path, error: OSError, flag: str) -> InputError:
    return InputError(f"{flag} {place}: {parent} cannot be written to ({_reason(error)}); choose another place")


def _files_of_bundle(folder: Path) -> set[str] | None:
    """Names of the files of the bundle in `folder`, of any format version; None if there is no bundle."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {MANIFEST, *values["files"]} if "format_version" in values else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _existing(folder: Path) -> Path:
    """The folder or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _remove_empty(folders: list[Path]) -> None:
    """Removes those folders, deepest first, that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _is_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"os error {number})" in str(error) for number in _FULL)  # the library passes on only the text


def _reason(error: OSError | SafetensorError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"
