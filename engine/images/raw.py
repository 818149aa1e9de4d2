"""Raw pixels, as the wire has them.

Shapes: N images of side S.
"""

import numpy as np
import numpy.typing as npt

from engine.errors import InvalidRequest

Bytes = npt.NDArray[np.uint8]


def from_raw(
    data: bytes | memoryview, shape: tuple[int, int, int], image_size: int, field: str = "images.raw"
) -> Bytes:
    """Raw pixels as an array that shares their memory, uint8 [N, S, S, 3].

    Args:
        data: The pixels.
        shape: Count, height and width, as the sender gives them.
        image_size: Side S of the model's images, pixels.
        field: What errors call the message.

    Raises:
        InvalidRequest: When the numbers don't agree with each other or with the model.
    """
    count, height, width = shape
    if count < 1:
        raise InvalidRequest(f"{field}.count is 0; send at least one image", f"{field}.count")
    if (height, width) != (image_size, image_size):
        raise InvalidRequest(
            f"raw images must be {image_size}x{image_size} for this model, not {height}x{width}; "
            "resize them, or send them as files for the server to crop and resize",
            field,
        )
    expected = count * height * width * 3
    if len(data) != expected:
        raise InvalidRequest(
            f"{field}.data has {len(data)} bytes; {count} images of {height}x{width} RGB are {expected}",
            f"{field}.data",
        )
    return np.frombuffer(data, np.uint8).reshape(count, height, width, 3)
