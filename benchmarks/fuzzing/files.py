"""Image files to mutate: every format and mode that the server takes, and bombs made of them."""

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

_PNG_HEAD = 33  # signature and IHDR


@cache
def picture_files(side: int) -> tuple[bytes, ...]:
    """Good files of square pictures: formats, modes, EXIF, animation, interlacing."""
    ramp = np.arange(side, dtype=np.uint8)
    pixels = np.stack([ramp[:, None] + ramp, ramp[:, None] * ramp, ramp[:, None] | ramp], axis=2)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010F] = 6, 72.0, "maker"
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    opaque = picture.convert("RGBA")
    opaque.putalpha(128)
    frames = [picture, Image.new("RGB", picture.size, "red")]
    return (
        file_of(picture, "JPEG"),
        file_of(picture, "JPEG", progressive=True, exif=exif, comment=b"hello"),
        file_of(picture.convert("L"), "JPEG", quality=5),
        file_of(picture.convert("CMYK"), "JPEG", restart_marker_blocks=4),
        file_of(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        file_of(picture, "PNG", exif=exif, icc_profile=b"profile"),
        file_of(opaque, "PNG"),
        file_of(picture.convert("P"), "PNG", transparency=0),
        file_of(picture.convert("1"), "PNG"),
        file_of(deep, "PNG"),
        file_of(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        file_of(picture, "WEBP", exif=exif.tobytes(), icc_profile=b"profile"),
        file_of(opaque, "WEBP", lossless=True),
        file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=9),
    )


@cache
def bomb_files(weight: int) -> tuple[bytes, ...]:
    """Files that want more work than their size says, of `weight` parts; at 100,000 every limit is passed."""
    jpeg = file_of(Image.new("RGB", (64, 64)), "JPEG")
    png = file_of(Image.new("L", (64, 64)), "PNG")
    rationals = orientation(6, weight // 4)
    scan = jpeg.index(b"\xff\xda")
    pieces = [rationals[start : start + 65_000] for start in range(0, len(rationals), 65_000)]
    exif = b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces)
    text = zlib.compress(bytes(weight * 100), 9)
    return (
        jpeg[:scan] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * (weight // 100) + b"\xff\xd9",
        jpeg[:2] + segment(0xFE, b"") * (weight // 10) + jpeg[2:],
        jpeg[:2] + b"\xff" * weight + jpeg[2:],
        jpeg[:2] + exif + jpeg[20:],
        *(
            png[:_PNG_HEAD] + part + png[_PNG_HEAD:]
            for part in (
                chunk(b"tEXt", b"a\0b") * weight,
                chunk(b"iTXt", b"a\0\1\0\0\0" + text),
                chunk(b"zTXt", b"a\0\0" + text),
                chunk(b"iCCP", b"a\0\0" + text),
                chunk(b"eXIf", rationals),
                chunk(b"acTL", struct.pack(">LL", 2**31 - 1, 0)),
            )
        ),
        *(
            mend_png(png[:16] + struct.pack(">LL", *size) + png[24:])
            for size in ((2**31 - 1, 1), (65535, 65535), (0, 0))
        ),
        *(_wide_webp(width, height) for width, height in ((16383, 16383), (2**24, 255), (65536, 65535))),
        jpeg.replace(struct.pack(">HH", 64, 64), b"\xff\xff\xff\xff", 1),
    )


def mend_png(data: bytes) -> bytes:
    """A PNG file with its checksums made right, so that more of it is looked at."""
    return data[:8] + b"".join(chunk(kind, body) for kind, body in _chunks(data))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 8
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        position += 12 + length


def file_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """An image as a file, with Pillow's options."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def segment(marker: int, body: bytes) -> bytes:
    """A part of a JPEG file."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def orientation(value: int, rationals: int = 1) -> bytes:
    """EXIF with an orientation, and a resolution of so many numbers."""
    entries = ((0x0112, 3, 1, value), (0x011A, 5, rationals, 50), (0x0128, 3, 1, 2))
    directory = struct.pack("<H", 3) + b"".join(struct.pack("<HHLL", *entry) for entry in entries) + bytes(4)
    return b"II*\0\x08\0\0\0" + directory + struct.pack("<LL", 72, 1) * rationals


def _wide_webp(width: int, height: int) -> bytes:
    """An animation whose canvas is far larger than its frame."""

    def part(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<L", len(body)) + body + bytes(len(body) % 2)

    def number(value: int) -> bytes:
        return struct.pack("<L", value)[:3]

    pixels = file_of(Image.new("RGB", (16, 16)), "WEBP")[12:]
    frame = bytes(6) + number(15) + number(15) + number(9) + b"\0" + pixels
    canvas = part(b"VP8X", b"\2\0\0\0" + number(width - 1) + number(height - 1))
    body = b"WEBP" + canvas + part(b"ANIM", bytes(6)) + part(b"ANMF", frame)
    return b"RIFF" + struct.pack("<L", len(body)) + body
