"""Pictures to send: smooth random colours, so that no two look alike to a model, and files of them.

Shapes: N images of side S.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.images import DEFAULT_QUALITY

Bytes = npt.NDArray[np.uint8]

_GRID = 4


def pictures(count: int, size: int, seed: int) -> Bytes:
    """Random pictures, uint8 [N, S, S, 3]; noise alone would do for timing, but all noise has the same latent."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, _GRID, _GRID, 3), dtype=np.uint8)
    resized = [Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC) for one in coarse]
    return np.stack([np.asarray(one) for one in resized])


def jpeg_files(count: int, size: int, seed: int) -> list[bytes]:
    """The same pictures as JPEG files."""
    return jpegs(pictures(count, size, seed))


def jpegs(images: Bytes) -> list[bytes]:
    """Images, uint8 [N, S, S, 3], as JPEG files of the server's default quality."""
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=DEFAULT_QUALITY)
        files.append(file.getvalue())
    return files


def file_side(image_size: int, crop: int | None) -> int:
    """Side of files to send to a model, pixels: what it cuts out, or three times what it needs."""
    return crop or 3 * image_size
