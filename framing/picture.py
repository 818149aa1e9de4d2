"""A decoded picture of any mode and size to the pixels that a model takes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from framing.frame import Frame

_STRIP_PIXELS = 2**20


def prepare(image: Image.Image, frame: Frame) -> NDArray[np.uint8]:
    """Makes a model input, (S, S, 3) uint8 RGB, pixel for pixel as torchvision's CenterCrop and Resize do.

    They are bilinear, with anti-aliasing. The picture may be of any mode, see `to_rgb`, and be turned in place, see
    `upright`.

    Raises:
        FramingError: it can't be brought to the frame.
        ValueError: its mode has no defined range.
    """
    upright(image)
    frame.check(*image.size)
    if side := frame.side(*image.size):
        return np.asarray(_resize(to_rgb(_cut_centre(image, side)), frame.size, frame.size))
    width, height = image.size
    if width <= height:
        width, height = frame.size, int(frame.size * height / width)
    else:
        width, height = int(frame.size * width / height), frame.size
    return np.asarray(_cut_centre(_resize(to_rgb(image), width, height), frame.size))


def upright(image: Image.Image) -> None:
    """Turns an image in place as its EXIF orientation says."""
    ImageOps.exif_transpose(image, in_place=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparent parts show a white ground, 16-bit grey is scaled so that 65,535 is white.

    An animation counts as its first frame; colour profiles are ignored.

    Raises:
        ValueError: the mode has no defined range, such as 32-bit floats.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    # In strips: on the way there are up to four times as many bytes as in the result, which itself may be 256 MB.
    result = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_strip_to_rgb(strip), (0, top))
    return result


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65_535:
            raise ValueError("its values are not of 16 bits; save it with 8 bits a channel")
        return Image.fromarray(np.round(levels / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its values are floats; save it with 8 bits a channel")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _cut_centre(image: Image.Image, side: int) -> Image.Image:
    left = round((image.width - side) / 2.0)
    top = round((image.height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BILINEAR)
