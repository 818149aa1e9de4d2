"""One image file to the pixels that a model is trained on; `framing` does the same to what clients send."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from framing import Aligner, Frame, FramingError, TooLongError, TooSmallError, prepare, to_rgb, upright
from trainer.data.index import ImageFile
from trainer.errors import DataError

MAX_PIXELS = 64_000_000


class Reading(NamedTuple):
    """What became of an image file."""

    image: NDArray[np.uint8]  # (S, S, 3) uint8 RGB
    brought: bool  # whether the picture had another size than the frame and was brought to it
    faces: int  # how many faces were found, where faces are aligned


def read(path: ImageFile, frame: Frame, aligner: Aligner | None = None) -> Reading:
    """Decodes an image file and brings it to the frame, see `framing.Frame`.

    CelebA's own files are prepared as in the seed document: CenterCrop(crop), Resize(S), bilinear. Before that, the
    image is turned upright as its EXIF orientation says, and becomes RGB: transparent parts show a white ground, 16-bit
    grey is scaled to 8 bits, an animation counts as its first frame, and colour profiles are ignored.

    An aligner aligns its face with the frame first, whatever the size of the picture.

    Raises:
        DataError: the file is no image, damaged, too large, too long, smaller than the crop, or shows no face. The
            message names the file, what is wrong with it and how to mend it, if not by replacing it.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            _check_pixels(path, image.size)
            upright(image)
            if aligner is not None:
                aligned, faces = aligner.align(to_rgb(image))
                return Reading(prepare(aligned, frame), faces > 0, faces)
            check_size(path, image.size, frame)
            return Reading(prepare(image, frame), frame.brings(*image.size), 0)
    except DataError:
        raise
    except FramingError as error:
        raise DataError(f"{path} {error}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} has more than the accepted {MAX_PIXELS:,} pixels; make it smaller") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} {_not_an_image(path)}") from error
    except Exception as error:  # Pillow's decoders raise many unrelated types on damaged files
        reason = isinstance(error, OSError) and error.strerror
        raise DataError(f"{path} cannot be {f'read ({reason})' if reason else f'decoded ({error})'}") from error


def check_size(path: ImageFile, size: tuple[int, int], frame: Frame) -> None:
    """Refuses an image that cannot be prepared, by its width and height.

    Raises:
        DataError: it is too large, too long or smaller than the crop.
    """
    _check_pixels(path, size)
    try:
        frame.check(*size)
    except TooSmallError as error:
        raise DataError(f"{path} {error}; train with --crop 0 on images that are cropped already") from error
    except TooLongError as error:
        raise DataError(f"{path} {error}; cut the face out, or give --align") from error


def _check_pixels(path: ImageFile, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(f"{path} is {width}x{height}, more than the accepted {MAX_PIXELS:,} pixels; make it smaller")


def _not_an_image(path: ImageFile) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    return f"is not an image (it starts with {start!r})" if start else "is empty (0 bytes)"
