"""What JPEG, PNG and WebP files say before anything is decoded, and what of it is refused."""

import re
import struct

from engine.errors import InvalidRequest

# What Pillow does for every scan, segment, chunk and EXIF value costs far more than its bytes on the wire: 20 kB of
# scans kept it busy for 20 s. Real files stay far below these numbers.
_MAX_JPEG_SCANS = 100
_MAX_JPEG_SEGMENTS = 2048
_MAX_JPEG_PADDING = 65_536
_MAX_PNG_CHUNKS = 65_536
MAX_EXIF_BYTES = 2**20
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither stuffing nor padding nor a restart
_END_OF_IMAGE, _START_OF_SCAN, _APP1 = 0xD9, 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a frame's header: precision, height, width
_SUPPORTED_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_STANDALONE = frozenset({0xC8, 0xD8, _END_OF_IMAGE, *range(0xF0, 0xFE)})  # markers that no length follows


def check_parts(data: bytes) -> None:
    """Refuses files of so many parts that reading them takes out of all proportion to their size."""
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        position, chunks = 8, 0
        while position < len(data):
            chunks += 1
            check_number(chunks, _MAX_PNG_CHUNKS, "chunks")
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
        check_number(segments, _MAX_JPEG_SEGMENTS, "segments")
        check_number(scans, _MAX_JPEG_SCANS, "scans")
        check_number(padding, _MAX_JPEG_PADDING, "bytes of padding")
        check_number(exif, MAX_EXIF_BYTES, "bytes of EXIF data")
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


def check_number(number: int, limit: int, what: str) -> None:
    """Refuses files that have more than `limit` of something."""
    if number > limit:
        raise InvalidRequest(f"has more than {limit} {what}; save it again, without what isn't picture")


def webp_size(data: bytes) -> tuple[int, int] | None:
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


_OTHERS = (
    (4, b"ftypavif", "an AVIF file"),
    (4, b"ftyphei", "a HEIC file"),  # as phones take them
    (4, b"ftypmif1", "a HEIC file"),
    (0, b"GIF8", "a GIF file"),
    (0, b"II*\0", "a TIFF file"),
    (0, b"MM\0*", "a TIFF file"),
    (0, b"BM", "a BMP file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"<", "text"),
)
"""Where other files have which bytes."""


def fault_of(data: bytes) -> str:
    """What is wrong with a file that Pillow doesn't know."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
        if not width or not height:
            return f"is a PNG file of {width}x{height} pixels; send a picture"
        return "is a PNG file, but damaged or truncated; save it again"
    if not data:
        return "is empty; send a picture"
    if data.startswith(b"\xff\xd8\xff"):
        return "is a JPEG file, but damaged or truncated, or of a kind that can't be read here; save it again"
    kind = next((kind for at, magic, kind in _OTHERS if data.startswith(magic, at)), "")
    if kind:
        return f"is {kind}, not a JPEG, PNG or WebP file; convert it to one"
    return f"is not a JPEG, PNG or WebP file (it starts with {data[:4].hex(' ')}); convert it to one"
