"""Results on disk, whole or not at all: one image file, a grid, or a folder of numbered files."""

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from engine.client.values import Bytes, FileFormat

FORMATS: dict[str, FileFormat] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

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
    """A place for images, which `save` can write to."""

    path: Path
    is_folder: bool


def image_output(name: str) -> Output:
    """The place for images that a name means, before there is anything to write.

    It is a folder when it ends in a slash, when that is what is there, and when it has no suffix.

    Raises:
        UsageError: When its suffix is that of no image, it is a file where a folder is meant, or the folder that it
            lies in doesn't exist.
    """
    path = Path(name)
    slash = name.endswith(os.sep)
    is_folder = slash or path.is_dir() or not path.suffix
    if not is_folder:
        format_of(path)
    elif path.exists() and not path.is_dir():
        why = "ends in a slash" if slash else "has no suffix"
        raise UsageError(f"{name} {why}, so a folder is meant, and it is a file; remove it, or give another name")
    return Output(_in_a_folder(path), is_folder)


def array_output(name: str) -> Path:
    """The .npy file that a name means, before there is anything to write.

    Raises:
        UsageError: When it is none, or the folder that it lies in doesn't exist.
    """
    path = Path(name)
    if path.suffix != ".npy":
        raise UsageError(f"{name} must end in .npy")
    if name.endswith(os.sep) or path.is_dir():
        raise UsageError(f"{name} is a folder; give a .npy file, for example {path / 'latents.npy'}")
    return _in_a_folder(path)


def save(images: Bytes, output: Output, columns: int) -> None:
    """Writes images, uint8 [N, S, S, 3].

    Args:
        images: What to write.
        output: Image file: the image, or a grid of several. Folder: 000.png, 001.png, ...
        columns: Width of the grid, images.
    """
    path = output.path
    if output.is_folder:
        path.mkdir(exist_ok=True)
        digits = max(3, len(str(len(images) - 1)))
        for index, image in enumerate(images):
            write(path / f"{index:0{digits}}.png", _file_of(image, "PNG"))
    else:
        picture = images[0] if len(images) == 1 else grid(images, columns)
        write(path, _file_of(picture, format_of(path)))


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


def _in_a_folder(path: Path) -> Path:
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path} lies in a folder that doesn't exist; make it first")
    return path


def _file_of(picture: Bytes, file_format: FileFormat) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, file_format, quality=_QUALITY)
    return file.getvalue()
