"""Image files on a few threads, off the event loop.

Shapes: N images of side S.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from engine.arrays import Bytes
from engine.errors import InvalidField, InvalidRequest
from engine.images.files import MAX_FILE_PIXELS, UNLIMITED, PixelBudget, decode_file, encode_file
from engine.images.round_robin import RoundRobinPool
from framing import Frame

R = TypeVar("R")


@dataclass(slots=True)
class EncodedFiles:
    """Image files of a request."""

    contents: Sequence[bytes]
    field: str  # where they came in
    pixels: Bytes | None = None  # what they show, uint8 [N, S, S, 3], once they are decoded

    def __len__(self) -> int:
        return len(self.contents)


class Codec:
    """Decodes and encodes image files on a few threads, off the event loop, and computes what else would hold it up.

    Clients take turns, a file each, and so do the requests of a client: however large and many they are, a file waits
    for one of each other client at most, beside those that are worked on. At most `threads` files are decoded at one
    time.
    """

    def __init__(
        self, frame: Frame, threads: int, max_pixels: int = MAX_FILE_PIXELS, budget: PixelBudget = UNLIMITED
    ) -> None:
        self._frame = frame
        self._budget = budget
        self._max_pixels = max_pixels
        self._pool = RoundRobinPool(threads, "codec")

    async def decode(self, files: Sequence[bytes], field: str = "images.files", client: str = "") -> Bytes:
        """Decodes a client's files and brings them to the frame, uint8 [N, S, S, 3]; `field` is what errors call them.

        Raises:
            InvalidRequest: Naming, by its index, a file that can't be used.
        """
        images = np.empty((len(files), self._frame.size, self._frame.size, 3), np.uint8)

        def decode_into(index: int) -> None:
            try:
                images[index] = decode_file(files[index], self._frame, self._max_pixels, self._budget)
            except InvalidRequest as error:
                raise InvalidField(f"{field}[{index}]", str(error)) from error

        await self._pool.map(decode_into, range(len(files)), client)
        return images

    async def encode(self, images: Bytes, file_format: str, quality: int, client: str = "") -> list[bytes]:
        """Encodes images, uint8 [N, S, S, 3], for a client to one file each."""
        return await self._pool.map(lambda image: encode_file(image, file_format, quality), list(images), client)

    async def work(self, function: Callable[[], R], client: str = "") -> R:
        """Calls a function that would hold up the event loop, when it is the client's turn; it counts as a file."""
        (result,) = await self._pool.map(lambda _: function(), (None,), client)
        return result

    def close(self) -> None:
        """Ends the threads after what they are working on, for clients that have gone; doesn't wait for that."""
        self._pool.close()
