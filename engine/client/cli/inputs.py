"""What a command line names: files, folders and stdin to read, and attributes with their strengths.

Pictures go to the server as they are, or with their faces aligned first.
"""

import difflib
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from tqdm import tqdm
from tyro.conf import arg

from engine.arrays import Floats
from engine.client.arguments import finite, shown, whole
from engine.client.cli.outputs import FORMATS, PIPE, UsageError, naming
from engine.client.values import Model, Source
from framing import Aligner, Frame, FramingError, to_rgb, upright

Settings = dict[str, list[float]]
"""Attributes, and of each its strength; or several, of which each gets a picture."""

_NPY = b"\x93NUMPY"  # the first bytes of a .npy file
_MOST_STEPS = 100
_LYING = 5  # EXIF orientations from here on swap width and height

Read = Callable[[Path], bytes]
Align = Annotated[
    bool,
    arg(
        help="Find the face in each picture and bring its eyes and mouth to where the model expects them, before it is "
        "sent; of several the largest, which is said. Needs pip install 'dfc-vae[align,cpu]'."
    ),
]


def files_and_output(paths: tuple[str, ...]) -> tuple[list[Path], str]:
    """The files to read, folders among them opened, and the name of what to write."""
    if not paths:
        raise UsageError("no input and no output: give at least one image file, and then OUT")
    *inputs, output = paths
    if "" in inputs:
        raise UsageError('an input is empty, ""; is a variable of your shell not set?')
    if not inputs:
        raise UsageError(f"no input: give at least one image file before OUT {output}")
    return [file for name in inputs for file in _files_of(Path(name))], output


def _files_of(path: Path) -> list[Path]:
    if path == PIPE or not path.is_dir():
        return [path]
    images = (file for file in path.iterdir() if file.suffix.lower() in FORMATS and not file.is_dir())
    files = sorted(file for file in images if not file.name.startswith("."))
    if not files:
        raise UsageError(f"{path} is a folder without image files ({', '.join(FORMATS)})")
    return files


def require_known(names: list[str], model: Model) -> None:
    """Refuses names that are nearly those of attributes; the server says what is wrong with others."""
    exact = {attribute.name for attribute in model.attributes}
    known = {name.lower(): name for name in exact}
    for name in names:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        if near and name not in exact:
            raise UsageError(f"unknown attribute {name!r}; did you mean {known[near[0]]!r}?")


def parse_setting(setting: str) -> tuple[str, list[float]]:
    """An attribute and its strengths, from NAME=STRENGTH or NAME=FROM:TO:COUNT."""
    name, equals, value = map(str.strip, setting.rpartition("="))
    with suppress(ValueError):
        if name and equals:
            return name, _strengths(value)
    raise UsageError(
        "--set takes NAME=STRENGTH, the strength a finite float32 number, for example Smiling=1.5, or a range of 2 to "
        f"{_MOST_STEPS} strengths, FROM:TO:COUNT, for example Smiling=-2:2:5, not {setting!r}"
    )


def _strengths(value: str) -> list[float]:
    """One number, or those of FROM:TO:COUNT; ValueError where it is neither."""
    start, *rest = value.split(":")
    if not rest:
        return [finite("strength", float(start))]
    stop, count = rest
    first, last = (finite("strength", float(end)) for end in (start, stop))
    strengths: list[float] = np.linspace(first, last, whole("count", int(count), 2, _MOST_STEPS)).tolist()
    return strengths


def load_latents(path: Path) -> Floats:
    """Latents of a .npy file, float32 [N, D], or of stdin."""
    content = bytes_of(path)
    if not content.startswith(_NPY):
        raise UsageError(f"{path} is not a .npy file; `encode` writes one, and so does numpy.save")
    try:
        latents: Floats = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path} is damaged, or not an array of numbers: {error}") from None
    if latents.ndim != 2 or not np.issubdtype(latents.dtype, np.floating):
        raise UsageError(f"{path} must hold latents, float32 [N, latent_dim], not {shown(latents)}")
    return latents


def load_source(path: Path, read: Read) -> Source:
    """Latents, or a picture."""
    is_array = bytes_of(path).startswith(_NPY) if path == PIPE else path.suffix == ".npy"
    return load_latents(path) if is_array else [read(path)]


def reader(frame: Frame, align: bool) -> Read:
    """What reads the files to send, for several threads; with `align` it aligns their faces with the model's frame.

    Without, a note says once that a picture needs it.

    Raises:
        FramingError: The model's frame, or this environment, doesn't allow aligning.
    """
    return partial(_aligned, Aligner(frame)) if align else partial(_as_it_is, frame, iter([True]))


def bytes_of(path: Path) -> bytes:
    """Content of a file, or of stdin."""
    return _stdin() if path == PIPE else path.read_bytes()


@cache
def _stdin() -> bytes:
    with naming("stdin"):
        return sys.stdin.buffer.read()


def _as_it_is(frame: Frame, first: Iterator[bool], path: Path) -> bytes:
    data = bytes_of(path)
    size = _size(data)
    if size and frame.source and frame.brings(*size) and next(first, False):
        _note(
            f"{path} is {size[0]}x{size[1]} pixels, the model knows faces in {frame.source[0]}x{frame.source[1]}: "
            "the middle is taken for the face; --align finds it"
        )
    return data


def _size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a picture that stands upright; None where the server must say what is wrong with it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(Base.Orientation, 1) >= _LYING else (width, height)
    except Exception:  # Pillow raises many unrelated types for damaged files
        return None


def _note(text: str) -> None:
    tqdm.write(f"note: {text}", file=sys.stderr)


def _aligned(aligner: Aligner, path: Path) -> bytes:
    data = bytes_of(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright(image)
            aligned = aligner.align(to_rgb(image))
    except FramingError as error:
        raise FramingError(f"{path} {error}") from None
    except UnidentifiedImageError:
        raise FramingError(f"{path} is no image, or of a format that can't be read; convert it to JPEG") from None
    except Exception as error:  # Pillow's decoders raise many unrelated types for damaged files
        raise FramingError(f"{path} is damaged or too large ({error}); save it again") from error
    if aligned.faces > 1:
        _note(f"{path} shows {aligned.faces} faces; the largest is taken")
    file = io.BytesIO()
    aligned.image.save(file, "PNG")
    return file.getvalue()
