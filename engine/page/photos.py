"""Photos from visitors to the pixels that a model takes.

Shapes: images of side S.
"""

import asyncio
from typing import NamedTuple

from engine.arrays import Bytes
from engine.errors import InvalidRequest
from engine.images import PixelBudget, frame_picture, open_file
from framing import Aligner, Frame, FramingError, to_rgb

MAX_PIXELS = 24_000_000
"""Largest photo, pixels; the page makes larger ones smaller before it sends them."""


class Framed(NamedTuple):
    """A photo as the model takes it, uint8 [S, S, 3], and what a visitor may want to know of it."""

    pixels: Bytes
    note: str = ""


class NoFaceError(ValueError):
    """Raise when a photo has no face that can be aligned; its middle may still be one."""


class Photos:
    """Frames photos for a model, as the command-line client does, off the event loop: aligned, where that can be."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._budget = PixelBudget(MAX_PIXELS)
        self._aligner: Aligner | None = None
        self._unaligned = ""
        try:
            self._aligner = Aligner(frame)
        except FramingError as error:
            reason = str(error).replace("--align:", "").replace("--align", "aligning").strip()
            self._unaligned = f"The middle of the photo is taken for the face: {reason}"

    async def framed(self, file: bytes, align: bool = True) -> Framed:
        """Decodes a JPEG, PNG or WebP file and brings it to the frame: by its face, or without `align` by its middle.

        Raises:
            NoFaceError: When no face is found, or too small a one.
            InvalidRequest: When the file can't be used; the sentence goes after the photo's name.
        """
        return await asyncio.to_thread(self._framed, file, align)

    def _framed(self, file: bytes, align: bool) -> Framed:
        with open_file(file, MAX_PIXELS, self._budget) as picture:
            if self._aligner is None or not align:
                brought = self._frame.brings(*picture.size)
                return Framed(frame_picture(picture, self._frame), self._unaligned if brought and align else "")
            try:
                image, faces = self._aligner.align(to_rgb(picture))
            except FramingError as error:
                raise NoFaceError(str(error).partition(";")[0]) from None  # the page itself says what to do about it
            except ValueError as error:
                raise InvalidRequest(str(error)) from None
            note = f"The photo shows {faces} faces; the largest is taken." if faces > 1 else ""
            return Framed(frame_picture(image, self._frame), note)
