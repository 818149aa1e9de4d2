"""Images on the wire: raw pixels without a copy, and files decoded and brought to the frame as in training.

Shapes: N images of side S.
"""

import asyncio
import io
import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from engine.errors import InvalidRequest
from framing import Frame, TooLongError, TooSmallError, prepare, upright

Bytes = npt.NDArray[np.uint8]
T = TypeVar("T")
R = TypeVar("R")

FILE_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_FILE_PIXELS = 64_000_000
DEFAULT_QUALITY = 95

# What Pillow does for every scan, segment, chunk and EXIF value costs far more than its bytes on the wire: 20 kB of
# scans kept it busy for 20 s. Real files stay far below these numbers.
_MAX_JPEG_SCANS = 100
_MAX_JPEG_SEGMENTS = 2048
_MAX_JPEG_PADDING = 65_536
_MAX_PNG_CHUNKS = 65_536
_MAX_EXIF_BYTES = 2**20
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither stuffing nor padding nor a restart
_END_OF_IMAGE, _START_OF_SCAN, _APP1 = 0xD9, 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a frame's header: precision, height, width
_SUPPORTED_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_STANDALONE = frozenset({0xC8, 0xD8, _END_OF_IMAGE, *range(0xF0, 0xFE)})  # markers that no length follows


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


class PixelBudget:
    """Pixels that are decoded at one time, on all threads of all models; where they don't fit, a thread waits.

    One file is decoded in any case, however large it is.

    Args:
        pixels: At most so many, unless it is one file's; None: any number.
    """

    def __init__(self, pixels: int | None = None) -> None:
        self._most = pixels
        self._taken = 0
        self._changed = threading.Condition()
        self._line = threading.Lock()  # or small files would overtake a large one again and again

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Takes so many for the time of a context, as soon as there are so many."""
        with self._line, self._changed:
            self._changed.wait_for(lambda: not self._taken or self._most is None or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_UNLIMITED = PixelBudget()


@dataclass(slots=True)
class EncodedFiles:
    """Image files of a request.

    Attributes:
        contents: The files.
        field: Where they came in.
        pixels: What they show, uint8 [N, S, S, 3], once they are decoded.
    """

    contents: Sequence[bytes]
    field: str
    pixels: Bytes | None = None

    def __len__(self) -> int:
        return len(self.contents)


def decode_file(
    data: bytes, frame: Frame, max_pixels: int = MAX_FILE_PIXELS, budget: PixelBudget = _UNLIMITED
) -> Bytes:
    """Decodes a JPEG, PNG or WebP file and brings it to the frame, uint8 [S, S, 3].

    `max_pixels` is held against the file's header, before anything is decoded. Pillow has a limit of its own, one for
    the whole process, which would come first and can be lower: it is lifted here, where another takes its place, and
    not for those who only import this module.

    `budget` is what it takes its pixels from.

    Raises:
        InvalidRequest: When it is of another format, damaged, truncated, too large, or can't be brought to the frame.
        MemoryError: When this machine hasn't enough memory for it.
    """
    Image.MAX_IMAGE_PIXELS = None
    _check_parts(data)
    if size := _webp_size(data):
        _check_pixels(*size, max_pixels)
    decoded = False
    try:
        with ExitStack() as stack:
            if size:
                stack.enter_context(budget.taken(size[0] * size[1]))
            image = stack.enter_context(Image.open(io.BytesIO(data), formats=FILE_FORMATS))
            _check_pixels(*image.size, max_pixels)
            if not size:
                stack.enter_context(budget.taken(image.width * image.height))
            image.load()
            _check_number(len(image.info.get("exif", b"")), _MAX_EXIF_BYTES, "bytes of EXIF data")
            upright(image)  # EXIF data may be damaged, too
            decoded = True
            return prepare(image, frame)
    except (InvalidRequest, MemoryError):
        raise
    except TooSmallError as error:
        raise InvalidRequest(
            f"{error} that this model takes out of a picture; send a larger one, or one of {frame.size}x{frame.size} "
            "that is framed already"
        ) from None
    except TooLongError as error:
        raise InvalidRequest(f"{error}; cut the face out first") from None
    except UnidentifiedImageError:
        raise InvalidRequest(_unknown(data)) from None
    except Exception as error:  # Pillow's decoders raise many unrelated types for damaged files
        if decoded:
            raise  # that isn't the file's fault
        if "out of memory" in str(error):
            raise MemoryError(str(error)) from error
        raise InvalidRequest(f"is damaged or truncated ({error}); save it again") from error


def _unknown(data: bytes) -> str:
    """What is wrong with a file that Pillow doesn't know."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
        if not width or not height:
            return f"is a PNG file of {width}x{height} pixels; send a picture"
        return "is a PNG file, but damaged or truncated; save it again"
    start = data[:4].hex(" ") or "nothing"
    if data.startswith(b"\xff\xd8\xff"):
        return "is a JPEG file, but damaged or truncated, or of a kind that can't be read here; save it again"
    return f"is not a JPEG, PNG or WebP file (it starts with {start}); convert it to one"


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP file, pixels; None where its start is not that of one.

    Unlike those of JPEG and PNG, Pillow's decoder takes memory for all pixels as soon as it is made.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise InvalidRequest(f"is {width}x{height} pixels, more than the accepted {limit}; make it smaller")


def _check_parts(data: bytes) -> None:
    """Refuses files of so many parts that reading them takes out of all proportion to their size."""
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        position, chunks = 8, 0
        while position < len(data):
            chunks += 1
            _check_number(chunks, _MAX_PNG_CHUNKS, "chunks")
            position += 12 + int.from_bytes(data[position : position + 4], "big")


def _check_jpeg(data: bytes) -> None:
    position, segments, scans, padding, exif = 2, 0, 0, 0, 0
    while marker := _JPEG_MARKER.search(data, position):
        start, kind = marker.end(), data[marker.end() - 1]
        if scans == 0:
            padding += marker.start() - position
        elif kind == _END_OF_IMAGE:
            return
        length = int.from_bytes(data[start : start + 2], "big")
        segments += 1
        scans += kind == _START_OF_SCAN
        if kind == _APP1 and data.startswith(b"Exif\0\0", start + 2):
            exif += length
        _check_number(segments, _MAX_JPEG_SEGMENTS, "segments")
        _check_number(scans, _MAX_JPEG_SCANS, "scans")
        _check_number(padding, _MAX_JPEG_PADDING, "bytes of padding")
        _check_number(exif, _MAX_EXIF_BYTES, "bytes of EXIF data")
        if kind in _FRAMES:
            _check_frame(kind, data[start + 2 : start + 7])
        position = start if kind in _STANDALONE else start + max(length, 2)


def _check_frame(kind: int, header: bytes) -> None:
    """Refuses by name the kinds of JPEG that Pillow can't read, which it takes for no JPEG."""
    if kind not in _SUPPORTED_FRAMES:
        raise InvalidRequest(
            "is a lossless or hierarchical JPEG file, which can't be read here; save it as baseline JPEG or PNG"
        )
    if len(header) == 5:
        bits, height, width = struct.unpack(">BHH", header)
        if bits != 8:
            raise InvalidRequest(f"is a JPEG file of {bits} bits a value, which can't be read here; save it with 8")
        if not width or not height:
            raise InvalidRequest(f"is a JPEG file of {width}x{height} pixels; send a picture")


def _check_number(number: int, limit: int, what: str) -> None:
    if number > limit:
        raise InvalidRequest(f"has more than {limit} {what}; save it again, without what isn't picture")


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
    """Decodes and encodes image files on a few threads, off the event loop, and computes what else would hold it up.

    Clients take turns, a file each, and so do the requests of a client: however large and many they are, a file waits
    for `threads` others of each other client at most. At most `threads` files are decoded at one time.

    Args:
        frame: What files are brought to.
        threads: Images that are worked on at once.
        max_pixels: Largest file, pixels; larger ones are refused before they are decoded.
        budget: What all codecs of the process take their pixels from.
    """

    def __init__(
        self, frame: Frame, threads: int, max_pixels: int = MAX_FILE_PIXELS, budget: PixelBudget = _UNLIMITED
    ) -> None:
        self._frame = frame
        self._budget = budget
        self._max_pixels = max_pixels
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="codec")
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # of clients with work here

    async def decode(self, files: Sequence[bytes], field: str = "images.files", client: str = "") -> Bytes:
        """Decodes a client's files and brings them to the frame, uint8 [N, S, S, 3]; `field` is what errors call them.

        Raises:
            InvalidRequest: Naming, by its index, a file that can't be used.
        """
        if not files:
            raise InvalidRequest(f"{field} is empty; send at least one image", field)
        images = np.empty((len(files), self._frame.size, self._frame.size, 3), np.uint8)

        def decode_into(index: int) -> None:
            try:
                images[index] = decode_file(files[index], self._frame, self._max_pixels, self._budget)
            except InvalidRequest as error:
                raise InvalidRequest(f"{field}[{index}] {error}", f"{field}[{index}]") from error

        await self._map(client, decode_into, range(len(files)))
        return images

    async def encode(self, images: Bytes, file_format: str, quality: int, client: str = "") -> list[bytes]:
        """Encodes images, uint8 [N, S, S, 3], for a client to one file each."""
        return await self._map(client, lambda image: encode_file(image, file_format, quality), list(images))

    async def work(self, function: Callable[[], R], client: str = "") -> R:
        """Calls a function that would hold up the event loop, when it is the client's turn; it counts as a file."""
        (result,) = await self._map(client, lambda _: function(), (None,))
        return result

    def close(self) -> None:
        """Ends the threads after what they are working on, for clients that have gone; doesn't wait for that."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _map(self, client: str, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        # A few files of each client are in the pool, and each request of it waits for one turn at a time. So nobody
        # waits long, and a request that was cancelled or failed leaves no queue behind it.
        turns = self._turns.setdefault(client, asyncio.Semaphore(self._threads))
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[R]] = []
        failed = False

        def end(future: "asyncio.Future[R]") -> None:
            nonlocal failed
            turns.release()
            failed = failed or future.cancelled() or future.exception() is not None

        try:
            for item in items:
                await turns.acquire()
                if failed:
                    turns.release()
                    break
                future = loop.run_in_executor(self._pool, function, item)
                future.add_done_callback(end)
                futures.append(future)
            return await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()
