"""The place of a bundle on disk: free or replaceable, staged beside, and taken in one step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.bundle import MANIFEST
from export.errors import InputError


def check_place(out: Path, force: bool) -> None:
    """Lets `out` pass if it is free, or with `force` if it is a bundle and nothing else.

    Raises:
        InputError: otherwise.
    """
    if not out.exists() and not out.is_symlink():
        return
    listed = _files_of_bundle(out)
    if listed is None:
        raise InputError(f"--out {out}: exists and is not a bundle; choose another place")
    if not force:
        raise InputError(f"--out {out}: holds a bundle already; add --force to replace it, or choose another place")
    if strangers := sorted({entry.name for entry in out.iterdir()} - listed):
        raise InputError(
            f"--out {out}: beside the bundle it holds {', '.join(strangers)}, which --force would delete; "
            "move that away, or choose another place"
        )


def _files_of_bundle(folder: Path) -> set[str] | None:
    """Names of the files of the bundle in `folder`, of any format version; None if there is no bundle."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {MANIFEST, *values["files"]} if "format_version" in values else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, on the same file system; whatever is left in it at the end is removed.

    Raises:
        InputError: there is no way to write there.
    """
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise InputError(
            f"--out {out}: {out.parent} cannot be written to ({error.strerror}); choose another place"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Renames the finished bundle to `out`; an old bundle there goes only once the new one stands."""
    if not out.exists():
        folder.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)
