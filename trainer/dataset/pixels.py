"""One image file to the pixels that a model is trained on. `engine.images` does the same to what clients send."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms.functional import center_crop, resize

from trainer.dataset.index import ImageFile
from trainer.errors import DataError

MAX_PIXELS = 64_000_000
MAX_ASPECT = 16
"""Longer side over shorter one, without a crop: 1 x 10,000 pixels must not become 64 x 640,000."""


def read(path: ImageFile, image_size: int, crop: int) -> NDArray[np.uint8]:
    """Decodes an image file and prepares it as in the seed document: CenterCrop(crop), Resize(image_size), bilinear.

    Before that, the image is turned upright as its EXIF orientation says, and becomes RGB: transparent parts show a
    white ground, 16-bit grey is scaled to 8 bits, an animation counts as its first frame, and colour profiles are
    ignored.

    Args:
        path: the file.
        image_size: side S of the result, pixels.
        crop: side of the centred square that is cut out first, pixels; 0 resizes the shorter side to S and cuts the
            centred square out of that.

    Returns:
        (S, S, 3) uint8 RGB.

    Raises:
        DataError: the file is no image, damaged, too large, too long, or smaller than the crop. The message names the
            file, what is wrong with it and, where it is not replacing the file, the mend.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            check_size(path, image.size, crop)
            ImageOps.exif_transpose(image, in_place=True)
            rgb = to_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large ({error}); make it smaller") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} {_not_an_image(path)}") from error
    except Exception as error:  # Pillow's decoders raise many unrelated types on damaged files
        raise DataError(f"{path} cannot be decoded ({error})") from error
    cropped = center_crop(rgb, [crop]) if crop else rgb
    return np.asarray(center_crop(resize(cropped, [image_size]), [image_size]), np.uint8)


def check_size(path: ImageFile, size: tuple[int, int], crop: int) -> None:
    """Refuses an image that cannot be prepared, by its width and height.

    Raises:
        DataError: it is too large, too long or smaller than the crop.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(f"{path} is {width}x{height}, more than the accepted {MAX_PIXELS:,} pixels; make it smaller")
    if min(size) < crop:
        raise DataError(
            f"{path} is {width}x{height}, smaller than the crop of {crop}; use --crop 0 for images that are cropped "
            "already"
        )
    if not crop and max(size) > MAX_ASPECT * min(size):
        raise DataError(f"{path} is {width}x{height}, too far from square; cut the face out")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency over white, 16-bit grey scaled so that 65,535 is white.

    Raises:
        ValueError: the mode has no defined range, such as 32-bit floats.
    """
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


def _not_an_image(path: ImageFile) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    return f"is not an image (it starts with {start!r})" if start else "is empty (0 bytes)"
