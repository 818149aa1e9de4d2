"""Results on disk, whole or not at all: one image file, a grid, an animation, or a folder of numbered files; or stdout.

What exists is replaced only where that was asked for: it may be somebody's only photo.

Shapes: W walks of N images of side S.
"""

import io
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from PIL import Image
from tyro.conf import arg

from engine.arrays import Bytes
from engine.client.values import FileFormat
from engine.process.files import write_whole

PictureFormat = Literal["JPEG", "PNG", "WEBP", "GIF"]
FORMATS: dict[str, FileFormat] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What the server reads and writes, by suffix."""

PIPE = Path("-")
"""What stands for stdin and stdout."""

Overwrite = Annotated[bool, arg(help="Replace files that exist.")]

_PICTURES: dict[str, PictureFormat] = {**FORMATS, ".gif": "GIF"}
_ANIMATED = ("GIF", "WEBP")
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "GIF": 65_535}  # pixels, of the formats, or of who writes them
_GAP = 2  # pixels of white between the images of a grid
_QUALITY = 95
_FRAME_MS = 120


class UsageError(ValueError):
    """Raise when the command line asks for something that can't be done."""


class Output(NamedTuple):
    """A place for images, which `save` can write to: a file, a folder, or `PIPE`.

    The format is that of the file, or of the files in the folder.
    """

    path: Path
    is_folder: bool
    overwrite: bool
    file_format: PictureFormat


def image_output(name: str, overwrite: bool, file_format: PictureFormat = "PNG") -> Output:
    """The place for images that a name means, before there is anything to write.

    It is stdout when it is a hyphen, and a folder when it ends in a slash, when that is what is there, and when it has
    no suffix; these get the format that is given.

    Raises:
        UsageError: When its suffix is that of no image, it is a file where a folder is meant, its folder doesn't exist,
            or it would have to be replaced.
    """
    path = _path(name)
    if path == PIPE:
        return Output(path, False, overwrite, file_format)
    slash = name.endswith(os.sep)
    is_folder = slash or path.is_dir() or not path.suffix
    if not is_folder:
        if path.suffix.lower() not in _PICTURES:
            raise UsageError(f"{path} must end in one of {', '.join(_PICTURES)}")
        file_format = _PICTURES[path.suffix.lower()]
        require_new([path], overwrite)
    elif path.exists() and not path.is_dir():
        why = "ends in a slash" if slash else "has no suffix"
        raise UsageError(f"{name} {why}, so a folder is meant, and it is a file; remove it, or give another name")
    return Output(path, is_folder, overwrite, file_format)


def array_output(name: str, overwrite: bool) -> Path:
    """The .npy file that a name means, before there is anything to write; UsageError as `image_output`."""
    path = _path(name)
    if path == PIPE:
        return path
    if path.suffix != ".npy":
        raise UsageError(f"{name} must end in .npy")
    if name.endswith(os.sep) or path.is_dir():
        raise UsageError(f"{name} is a folder; give a .npy file, for example {path / 'latents.npy'}")
    require_new([path], overwrite)
    return path


def require_new(paths: Iterable[Path], overwrite: bool) -> None:
    """Checks that files aren't there yet, unless they may be replaced; raises UsageError when one is."""
    there = [] if overwrite else [path for path in paths if path.exists()]
    if there:
        others = {1: "", 2: ", and so does another one"}.get(len(there), f", and so do {len(there) - 1} more")
        raise UsageError(f"{there[0]} exists{others}; name another OUT, at the end, or give --overwrite to replace it")


def save(walks: Bytes, output: Output, columns: int | None = None) -> None:
    """Writes images, uint8 [W, N, S, S, 3], and says so: to a folder as 000.png, 001.png, ..., else as one `picture`.

    Its columns are by default about as many as its rows.

    Raises:
        UsageError: When files in a folder would have to be replaced; nothing is written then.
    """
    path, images = output.path, walks.reshape(-1, *walks.shape[2:])
    if output.is_folder:
        digits = max(3, len(str(len(images) - 1)))
        files = [path / f"{index:0{digits}}.png" for index in range(len(images))]
        require_new(files, output.overwrite)
        for file, image in zip(files, images, strict=True):
            write(file, _file_of([image], "PNG"))
        say_written(path, len(files))
    else:
        write(path, picture(walks, columns or math.ceil(math.sqrt(len(images))), output.file_format))
        say_written(path)


def picture(walks: Bytes, columns: int, file_format: PictureFormat) -> bytes:
    """One image file of images, uint8 [W, N, S, S, 3]: a grid of them all, so many columns wide.

    Of a format that can move it is an animation along all walks at once, which stand below each other, there and back.

    Raises:
        UsageError: When the format has no room for so large a picture.
    """
    if file_format not in _ANIMATED:
        return _file_of([grid(walks.reshape(-1, *walks.shape[2:]), columns)], file_format)
    frames = [grid(images, 1) for images in np.swapaxes(walks, 0, 1)]
    return _file_of([*frames, *frames[-2:0:-1]], file_format)


def say_written(path: Path, files: int | None = None) -> None:
    """Says what was written: a file, or so many files in a folder; of stdout it says nothing."""
    if path != PIPE:
        print(f"wrote {path}" if files is None else f"wrote {files} {'file' if files == 1 else 'files'} to {path}")


def write(path: Path, content: bytes) -> None:
    """Writes a file that is there with all of its content, or as it was before, and its folder; or writes to stdout."""
    if path == PIPE:
        sys.stdout.buffer.write(content)
        return
    path.parent.mkdir(exist_ok=True)
    with naming(path):
        write_whole(path, content)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Has an OSError name a file, in place of one that stands in for it or of none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


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
    if not name:
        raise UsageError('OUT is empty, ""; is a variable of your shell not set?')
    path = Path(name)
    if path == PIPE and sys.stdout.isatty():
        raise UsageError("- as OUT: stdout is a terminal; give it a file or a command: ... - > face.png")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path} lies in a folder that doesn't exist; make it first")
    return path


def _file_of(frames: list[Bytes], file_format: PictureFormat) -> bytes:
    height, width, _ = frames[0].shape
    longest = _LONGEST_SIDE.get(file_format, max(height, width))
    if max(height, width) > longest:
        raise UsageError(
            f"the picture would have {width}x{height} pixels, and a {file_format} file has at most {longest} a side; "
            "write a .png, or a folder, or take fewer faces or strengths"
        )
    file = io.BytesIO()
    first, *others = map(Image.fromarray, frames)
    moving = {"save_all": True, "append_images": others, "duration": _FRAME_MS, "loop": 0} if others else {}
    first.save(file, file_format, quality=_QUALITY, **moving)
    return file.getvalue()
