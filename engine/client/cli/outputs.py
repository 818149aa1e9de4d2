"""Results on disk, whole or not at all: one image file, a grid, or a folder of numbered files.

What exists is replaced only where that was asked for: it may be somebody's only photo.
"""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from PIL import Image
from tyro.conf import arg

from engine.client.values import Bytes, FileFormat

FORMATS: dict[str, FileFormat] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

Overwrite = Annotated[bool, arg(help="Replace files that exist.")]

_GAP = 2  # pixels of white between the images of a grid
_QUALITY = 95


class UsageError(Exception):
    """Raise when the command line asks for something that can't be done."""


def format_of(path: Path) -> FileFormat:
    """Format of an image file by its suffix.

    Raises:
        UsageError: When no format has that suffix.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise UsageError(f"{path} must end in one of {', '.join(FORMATS)}") from None


class Output(NamedTuple):
    """A place for images, which `save` can write to, and whether files that exist there may be replaced."""

    path: Path
    is_folder: bool
    overwrite: bool


def image_output(name: str, overwrite: bool) -> Output:
    """The place for images that a name means, before there is anything to write.

    It is a folder when it ends in a slash, when that is what is there, and when it has no suffix.

    Raises:
        UsageError: When its suffix is that of no image, it is a file where a folder is meant, the folder that it lies
            in doesn't exist, or it would have to be replaced.
    """
    path = _path(name)
    slash = name.endswith(os.sep)
    is_folder = slash or path.is_dir() or not path.suffix
    if not is_folder:
        format_of(path)
        require_new([path], overwrite)
    elif path.exists() and not path.is_dir():
        why = "ends in a slash" if slash else "has no suffix"
        raise UsageError(f"{name} {why}, so a folder is meant, and it is a file; remove it, or give another name")
    return Output(_in_a_folder(path), is_folder, overwrite)


def array_output(name: str, overwrite: bool) -> Path:
    """The .npy file that a name means, before there is anything to write.

    Raises:
        UsageError: When it is none, the folder that it lies in doesn't exist, or it would have to be replaced.
    """
    path = _path(name)
    if path.suffix != ".npy":
        raise UsageError(f"{name} must end in .npy")
    if name.endswith(os.sep) or path.is_dir():
        raise UsageError(f"{name} is a folder; give a .npy file, for example {path / 'latents.npy'}")
    require_new([path], overwrite)
    return _in_a_folder(path)


def require_new(paths: Iterable[Path], overwrite: bool) -> None:
    """Checks that files aren't there yet, unless they may be replaced.

    Raises:
        UsageError: When one is.
    """
    there = [] if overwrite else [path for path in paths if path.exists()]
    if there:
        others = f", and so do {len(there) - 1} more" if len(there) > 1 else ""
        raise UsageError(f"{there[0]} exists{others}; name another OUT, at the end, or give --overwrite to replace it")


def save(images: Bytes, output: Output, columns: int) -> None:
    """Writes images, uint8 [N, S, S, 3], and says so.

    Args:
        images: What to write.
        output: Image file: the image, or a grid of several. Folder: 000.png, 001.png, ...
        columns: Width of the grid, images.

    Raises:
        UsageError: When files in a folder would have to be replaced; nothing is written then.
    """
    path = output.path
    if output.is_folder:
        digits = max(3, len(str(len(images) - 1)))
        files = [path / f"{index:0{digits}}.png" for index in range(len(images))]
        require_new(files, output.overwrite)
        path.mkdir(exist_ok=True)
        for file, image in zip(files, images, strict=True):
            write(file, _file_of(image, "PNG"))
        say_written(path, len(files))
    else:
        picture = images[0] if len(images) == 1 else grid(images, columns)
        write(path, _file_of(picture, format_of(path)))
        say_written(path)


def say_written(path: Path, files: int | None = None) -> None:
    """Says what was written: a file, or so many files in a folder."""
    print(f"wrote {path}" if files is None else f"wrote {files} {'file' if files == 1 else 'files'} to {path}")


def write(path: Path, content: bytes) -> None:
    """Writes a file that is there with all of its content, or as it was before."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def grid(images: Bytes, columns: int) -> Bytes:
    """Images, uint8 [N, S, S, 3], row by row in one, uint8 [height, width, 3]."""
    count, height, width, _ = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    picture = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        picture[top : top + height, left : left + width] = image
    return picture


def _path(name: str) -> Path:
    if name == "-":
        raise UsageError("- as OUT: results go to files only; give the name of one")
    return Path(name)


def _in_a_folder(path: Path) -> Path:
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path} lies in a folder that doesn't exist; make it first")
    return path


def _file_of(picture: Bytes, file_format: FileFormat) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, file_format, quality=_QUALITY)
    return file.getvalue()
