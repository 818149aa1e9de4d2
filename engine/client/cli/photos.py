"""Image files, or stdin, on their way to a server: as they are, or with their faces aligned first."""

import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from tqdm import tqdm
from tyro.conf import arg

from engine.client.cli.outputs import PIPE
from framing import Aligner, Frame, FramingError, to_rgb, upright

_LYING = 5  # EXIF orientations from here on swap width and height

Read = Callable[[Path], bytes]
Align = Annotated[
    bool,
    arg(
        help="Find the face in each picture and bring its eyes and mouth to where the model expects them, before it is "
        "sent; of several the largest, which is said. Needs pip install 'dfc-vae[align,cpu]'."
    ),
]


def reader(frame: Frame, align: bool) -> Read:
    """What reads the files to send, for several threads; with `align` it aligns their faces with the model's frame.

    Without, a note says once that a picture needs it.

    Raises:
        FramingError: The model's frame, or this environment, doesn't allow aligning.
    """
    return _aligned(Aligner(frame)) if align else _as_it_is(frame)


def bytes_of(path: Path) -> bytes:
    """Content of a file, or of stdin."""
    return _stdin() if path == PIPE else path.read_bytes()


@functools.cache
def _stdin() -> bytes:
    return sys.stdin.buffer.read()


def _as_it_is(frame: Frame) -> Read:
    first = iter([True])

    def read(path: Path) -> bytes:
        data = bytes_of(path)
        size = _size(data)
        if size and frame.source and frame.brings(*size) and next(first, False):
            _note(
                f"{path} is {size[0]}x{size[1]} pixels, the model knows faces in {frame.source[0]}x{frame.source[1]}: "
                "the middle is taken for the face; --align finds it"
            )
        return data

    return read


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


def _aligned(aligner: Aligner) -> Read:
    def read(path: Path) -> bytes:
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

    return read
