"""Images on the wire: raw pixels without a copy, and files decoded, cropped and resized as in training.

Shapes: N images of side S.
"""

import asyncio
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.bundle import Preprocessing
from engine.errors import InvalidRequest

Bytes = npt.NDArray[np.uint8]

FILE_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_FILE_PIXELS = 64_000_000
DEFAULT_QUALITY = 95

# Without a crop the longer side is resized before it is cut: 1 x 10,000 pixels must not become 64 x 640,000.
_MAX_ASPECT = 16


def from_raw(data: bytes, count: int, height: int, width: int, image_size: int) -> Bytes:
    """Raw pixels as an array that shares their memory, uint8 [N, S, S, 3].

    Raises:
        InvalidRequest: When the numbers don't agree with each other or with the model.
    """
    if count < 1:
        raise InvalidRequest("images.raw.count is 0; send at least one image")
    if (height, width) != (image_size, image_size):
        raise InvalidRequest(
            f"raw images must be {image_size}x{image_size} for this model, not {height}x{width}; "
            "resize them, or send them as files for the server to crop and resize"
        )
    expected = count * height * width * 3
    if len(data) != expected:
        raise InvalidRequest(
            f"images.raw.data has {len(data)} bytes; {count} images of {height}x{width} RGB are {expected}"
        )
    return np.frombuffer(data, np.uint8).reshape(count, height, width, 3)


def prepare(image: Image.Image, image_size: int, crop: int | None) -> Bytes:
    """Makes a model input from an image, pixel for pixel as training does with torchvision's CenterCrop and Resize.

    The image is turned upright as its EXIF orientation says. With a crop, the centred square of that side is cut
    out and resized. Without, the shorter side is resized to `image_size` and the centred square is cut out of that.

    Args:
        image: An image of any mode, see `to_rgb`; it may be turned in place.
        image_size: Side S of the result, pixels.
        crop: Side of the square to cut out first, pixels, or None.

    Returns:
        uint8 [S, S, 3].

    Raises:
        InvalidRequest: When the image is smaller than the crop, or far from square and not cropped.
    """
    ImageOps.exif_transpose(image, in_place=True)
    width, height = image.size
    if crop:
        if min(width, height) < crop:
            raise InvalidRequest(
                f"is {width}x{height} pixels, smaller than the {crop}x{crop} that this model cuts out; "
                f"send at least {crop}x{crop}, or a raw image of {image_size}x{image_size}"
            )
        return np.asarray(_resize(to_rgb(_cut_centre(image, crop)), image_size, image_size))
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise InvalidRequest(f"is {width}x{height} pixels, too far from square; cut the face out first")
    if width <= height:
        resized = _resize(to_rgb(image), image_size, int(image_size * height / width))
    else:
        resized = _resize(to_rgb(image), int(image_size * width / height), image_size)
    return np.asarray(_cut_centre(resized, image_size))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparent parts show a white ground, 16-bit grey is scaled so that 65,535 is white.

    An animation counts as its first frame; colour profiles are ignored.
    """
    if image.mode.startswith("I"):
        return Image.fromarray(np.round(np.asarray(image) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
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


def decode_file(data: bytes, image_size: int, crop: int | None) -> Bytes:
    """Decodes a JPEG, PNG or WebP file and prepares it, uint8 [S, S, 3].

    Raises:
        InvalidRequest: When it is of another format, damaged, truncated, or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FILE_FORMATS) as image:
            if image.width * image.height > MAX_FILE_PIXELS:
                raise InvalidRequest(
                    f"is {image.width}x{image.height} pixels, more than the accepted {MAX_FILE_PIXELS}; make it smaller"
                )
            image.load()
            return prepare(image, image_size, crop)
    except InvalidRequest:
        raise
    except UnidentifiedImageError:
        start = data[:4].hex(" ") or "nothing"
        raise InvalidRequest(f"is not a JPEG, PNG or WebP file (it starts with {start}); convert it to one") from None
    except Image.DecompressionBombError:
        raise InvalidRequest(f"has more than the {MAX_FILE_PIXELS} pixels that are accepted; make it smaller") from None
    except Exception as error:  # Pillow's decoders raise many unrelated types for damaged files
        raise InvalidRequest(f"is damaged or truncated ({error}); save it again") from error


def encode_file(pixels: Bytes, file_format: str, quality: int = DEFAULT_QUALITY) -> bytes:
    """Encodes one image.

    Args:
        pixels: uint8 [H, W, 3].
        file_format: One of `FILE_FORMATS`.
        quality: Of JPEG and WebP, 1 to 100.
    """
    file = io.BytesIO()
    options: dict[str, Any] = {} if file_format == "PNG" else {"quality": quality}
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


class Codec:
    """Decodes and encodes image files on a few threads, off the event loop.

    Args:
        image_size: Side S of the model's images, pixels.
        preprocessing: How files become model inputs.
        threads: Images that are worked on at once.
    """

    def __init__(self, image_size: int, preprocessing: Preprocessing, threads: int) -> None:
        self._image_size = image_size
        self._crop = preprocessing.crop
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="codec")

    async def decode(self, files: Sequence[bytes]) -> Bytes:
        """Decodes and prepares files, uint8 [N, S, S, 3].

        Raises:
            InvalidRequest: Naming, by its index, a file that can't be used.
        """
        if not files:
            raise InvalidRequest("images.files.files is empty; send at least one image")
        images = np.empty((len(files), self._image_size, self._image_size, 3), np.uint8)

        def decode_into(index: int) -> None:
            try:
                images[index] = decode_file(files[index], self._image_size, self._crop)
            except InvalidRequest as error:
                raise InvalidRequest(f"images.files[{index}] {error}") from error

        await self._map(decode_into, range(len(files)))
        return images

    async def encode(self, images: Bytes, file_format: str, quality: int) -> list[bytes]:
        """Encodes images, uint8 [N, S, S, 3], to one file each."""
        return await self._map(lambda image: encode_file(image, file_format, quality), list(images))

    def close(self) -> None:
        """Ends the threads, after what they are working on."""
        self._pool.shutdown()

    async def _map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        # A few at a time: requests take turns, and a cancelled or failed one leaves no queue behind it.
        loop = asyncio.get_running_loop()
        results: list[Any] = []
        for start in range(0, len(items), self._threads):
            some = items[start : start + self._threads]
            results += await asyncio.gather(*(loop.run_in_executor(self._pool, function, item) for item in some))
        return results
