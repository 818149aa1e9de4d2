"""Image files, decoded and brought to the frame as in training, and encoded.

Shapes: images of side S.
"""

import io
import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine.arrays import Bytes
from engine.errors import InvalidRequest
from engine.images.containers import MAX_EXIF_BYTES, check_number, check_parts, fault_of, webp_size
from framing import Frame, TooLongError, TooSmallError, prepare, upright

FILE_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_FILE_PIXELS = 64_000_000
DEFAULT_QUALITY = 95
# What libjpeg and libwebp need for each pixel, beside the picture.
_DECODERS_BYTES = 8


class PixelBudget:
    """Pixels that are decoded at one time, on all threads of all models; where they don't fit, a thread waits.

    One file is decoded in any case, however large it is.
    """

    def __init__(self, pixels: float) -> None:
        self._most = pixels
        self._taken = 0
        self._changed = threading.Condition()
        self._line = threading.Lock()  # or small files would overtake a large one again and again

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Takes so many for the time of a context, as soon as there are so many."""
        with self._line, self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


UNLIMITED = PixelBudget(math.inf)


@contextmanager
def open_file(data: bytes, max_pixels: int = MAX_FILE_PIXELS, budget: PixelBudget = UNLIMITED) -> Iterator[Image.Image]:
    """Decodes a JPEG, PNG or WebP file and turns it upright; the picture is there for the time of the context.

    `max_pixels` is held against the file's header, before anything is decoded; `budget` is what the pixels are taken
    from. Pillow has a limit of its own, one for the whole process, which would come first and can be lower: it is
    lifted here, where another takes its place, and not for those who only import this module.

    Raises:
        InvalidRequest: When it is of another format, damaged, truncated or too large.
        MemoryError: When this machine hasn't enough memory for it.
    """
    Image.MAX_IMAGE_PIXELS = None
    check_parts(data)
    if size := webp_size(data):
        _check_pixels(*size, max_pixels)
    pixels = size[0] * size[1] if size else 0
    with ExitStack() as stack:
        try:
            if size:
                stack.enter_context(budget.taken(pixels))
            image = stack.enter_context(Image.open(io.BytesIO(data), formats=FILE_FORMATS))
            _check_pixels(*image.size, max_pixels)
            if not size:
                pixels = image.width * image.height
                stack.enter_context(budget.taken(pixels))
            image.load()
            check_number(len(image.info.get("exif", b"")), MAX_EXIF_BYTES, "bytes of EXIF data")
            upright(image)  # EXIF data may be damaged, too
        except (InvalidRequest, MemoryError):
            raise
        except UnidentifiedImageError:
            raise InvalidRequest(fault_of(data)) from None
        except Exception as error:  # Pillow's decoders raise many unrelated types for damaged files
            if "out of memory" in str(error):
                raise MemoryError(str(error)) from error
            np.empty(pixels * _DECODERS_BYTES, np.uint8)  # some say the same of too little memory
            raise InvalidRequest(f"is damaged or truncated ({error}); save it again") from error
        yield image


def decode_file(data: bytes, frame: Frame, max_pixels: int = MAX_FILE_PIXELS, budget: PixelBudget = UNLIMITED) -> Bytes:
    """Decodes a file, see `open_file`, and brings it to the frame, uint8 [S, S, 3].

    Raises:
        InvalidRequest: When it can't be decoded, or brought to the frame.
        MemoryError: When this machine hasn't enough memory for it.
    """
    with open_file(data, max_pixels, budget) as image:
        return frame_picture(image, frame)


def frame_picture(image: Image.Image, frame: Frame) -> Bytes:
    """Brings a picture to the frame, uint8 [S, S, 3].

    Raises:
        InvalidRequest: When it can't be.
    """
    try:
        return prepare(image, frame)
    except TooSmallError as error:
        raise InvalidRequest(
            f"{error} that this model takes out of a picture; send a larger one, or one of {frame.size}x{frame.size} "
            "that is framed already"
        ) from None
    except TooLongError as error:
        raise InvalidRequest(f"{error}; cut the face out first") from None


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise InvalidRequest(f"is {width}x{height} pixels, more than the accepted {limit}; make it smaller")


def encode_file(pixels: Bytes, file_format: str, quality: int = DEFAULT_QUALITY) -> bytes:
    """Encodes an image, uint8 [H, W, 3], in one of `FILE_FORMATS`; JPEG and WebP in a quality of 1 to 100."""
    file = io.BytesIO()
    options: dict[str, Any] = {} if file_format == "PNG" else {"quality": quality}
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()
