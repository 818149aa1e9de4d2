"""What comes back: results as messages, raw or as files.

Raw pixels go straight from the array that the backend filled into the bytes that gRPC sends: laid beside the rest of
the message, with the few bytes in front of them that protobuf puts before a field. Setting them as a field and
serialising that would copy them three times.

Shapes: N images of side S, latents of dimension D.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from engine.images import DEFAULT_QUALITY
from engine.models.model import Model
from engine.service.request_parser import OutputSpec, latent_batch
from engine.service.zero_copy import to_varint
from protos import dfcvae_pb2 as pb

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# What protobuf writes before fields: (number << 3) | kind, kind 0 for integers and 2 for what has a length.
_IMAGES = _RAW = _EDITED = b"\x0a"
_COUNT, _HEIGHT, _WIDTH, _DATA = b"\x08", b"\x10", b"\x18", b"\x22"


class ImageResponse:
    """A response message, and the raw pixels that belong into its field `images`, uint8 [N, S, S, 3].

    Attributes:
        message: A response whose field 1 is `images`; holds everything but raw pixels.
        pixels: The pixels, or None.
    """

    __slots__ = ("message", "pixels")

    def __init__(self, message: Message, pixels: Bytes | None = None) -> None:
        self.message = message
        self.pixels = pixels

    def parts(self) -> list[bytes | memoryview]:
        """The serialised message, piece by piece."""
        rest = self.message.SerializeToString()
        if self.pixels is None:
            return [rest]
        count, height, width, _ = self.pixels.shape
        return [_before_pixels(count, height, width), np.ascontiguousarray(self.pixels).data.cast("B"), rest]

    def SerializeToString(self) -> bytes:  # noqa: N802 - the name that messages have
        """The bytes of the whole message."""
        return b"".join(self.parts())


class StreamResponse:
    """An EditStreamResponse around an ImageResponse; `id` as in the request.

    It is serialised when it is made: while it waits for its turn, it holds its own bytes, and not those of the whole
    batch that its pixels were computed in.
    """

    __slots__ = ("_data",)

    def __init__(self, response: ImageResponse, id: int) -> None:
        parts = response.parts()
        length = to_varint(sum(map(len, parts)))
        self._data = b"".join((_EDITED, length, *parts, pb.EditStreamResponse(id=id).SerializeToString()))

    def SerializeToString(self) -> bytes:  # noqa: N802
        """The bytes of the whole message."""
        return self._data


def serialize(response: Any) -> bytes:
    """The bytes of a message, an ImageResponse or a StreamResponse."""
    data: bytes = response.SerializeToString()
    return data


async def image_response(
    message: Any,
    model: Model,
    output: OutputSpec,
    images: Bytes | None,
    latents: Floats | None = None,
    *,
    client: str = "",
) -> ImageResponse:
    """What is to come back.

    Args:
        message: An empty response, with the fields `images` and `latents`.
        model: Whose they are.
        output: What is wanted.
        images: Resulting images, uint8 [N, S, S, 3], if there are any.
        latents: Resulting latents, float32 [N, D].
        client: Whose they are to be.
    """
    if output.latents and latents is not None:
        message.latents.CopyFrom(latent_batch(latents))
    if images is None or output.file_format is None:
        return ImageResponse(message, images)
    files = await model.codec.encode(images, output.file_format, output.quality or DEFAULT_QUALITY, client)
    message.images.files.files.extend(files)
    return ImageResponse(message)


@lru_cache(maxsize=4096)
def _before_pixels(count: int, height: int, width: int) -> bytes:
    """What comes before the pixels in field `images`, of which they are the last bytes."""
    size = count * height * width * 3
    raw = b"".join(
        (_COUNT, to_varint(count), _HEIGHT, to_varint(height), _WIDTH, to_varint(width), _DATA, to_varint(size))
    )
    batch = b"".join((_RAW, to_varint(len(raw) + size), raw))
    return b"".join((_IMAGES, to_varint(len(batch) + size), batch))
