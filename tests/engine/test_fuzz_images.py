"""Damaged and malicious image files are refused in a sentence, at once, and nothing else happens."""

import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fuzzing.files import chunk, file_of, orientation, segment
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.errors import InvalidRequest
from engine.images import decode_file
from framing import Frame

SIDE = 24
FRAME = Frame(SIDE)
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def picture(file_format: str, mode: str = "RGB", **options: Any) -> bytes:
    return file_of(Image.fromarray(NOISE).convert(mode), file_format, **options)


JPEG, PNG = picture("JPEG"), picture("PNG")
SCAN = JPEG.index(b"\xff\xda")
GOOD = (
    JPEG,
    picture("JPEG", progressive=True, exif=orientation(6), comment=b"hello"),
    picture("JPEG", "CMYK", restart_marker_blocks=1),
    PNG,
    picture("PNG", "P", transparency=0, exif=orientation(3)),
    picture("PNG", "RGBA"),
    picture("WEBP", exif=orientation(8)),
    picture("WEBP", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
)


def in_png(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def exif_in_jpeg(exif: bytes) -> bytes:
    parts = (exif[start : start + 65_000] for start in range(0, len(exif), 65_000))
    return JPEG[:2] + b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts) + JPEG[20:]


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: JPEG[:SCAN] + segment(0xDA, b"\1\1\0\0\x3f\0") * 101 + b"\xff\xd9", "100 scans"),
    "segments": (lambda: JPEG[:2] + segment(0xFE, b"") * 100_000 + JPEG[2:], "2048 segments"),
    "markers without length": (lambda: JPEG[:2] + b"\xff\xf0" * 100_000 + JPEG[2:], "2048 segments"),
    "padding": (lambda: JPEG[:2] + b"\xff" * 100_000 + JPEG[2:], "65536 bytes of padding"),
    "restarts before the picture": (lambda: JPEG[:2] + b"\xff\xd0" * 100_000 + JPEG[2:], "65536 bytes of padding"),
    "EXIF in JPEG": (lambda: exif_in_jpeg(orientation(6, 200_000)), "bytes of EXIF"),
    "EXIF in PNG": (lambda: in_png(chunk(b"eXIf", orientation(6, 200_000))), "bytes of EXIF"),
    "EXIF in WebP": (lambda: picture("WEBP", exif=orientation(6, 200_000)), "bytes of EXIF"),
    "chunks": (lambda: in_png(chunk(b"abCd", b"") * 70_000), "65536 chunks"),
    "text": (lambda: in_png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))), "too large"),
    "profile": (lambda: in_png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27)))), "too large"),
    "pixels": (
        lambda: PNG[:8] + chunk(b"IHDR", struct.pack(">LLBBBBB", 65_535, 65_535, 8, 2, 0, 0, 0)) + PNG[33:],
        "64000000",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_costs_anything(name: str) -> None:
    make, message = BOMBS[name]
    data = make()
    started = time.process_time()
    with pytest.raises(InvalidRequest, match=message):
        decode_file(data, FRAME)
    assert time.process_time() - started < 5, "some of these take minutes when they are not refused"


@pytest.mark.parametrize("file", GOOD)
def test_good_files_stay_below_every_limit(file: bytes) -> None:
    assert decode_file(file, FRAME).shape == (SIDE, SIDE, 3)


def test_a_photograph_of_many_segments_is_taken() -> None:
    head = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 200
    rest = b"a film that a telephone has put behind the picture \xff\xda" * 1000
    np.testing.assert_array_equal(decode_file(JPEG[:2] + head + JPEG[2:] + rest, FRAME), decode_file(JPEG, FRAME))


spoils = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0, 1), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4
)


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(st.sampled_from(GOOD), spoils)
def test_a_spoilt_file_is_decoded_or_refused(file: bytes, spoils: list[tuple[int, float, bytes]]) -> None:
    data = bytearray(file)
    for kind, place, some in spoils:
        start = int(place * len(data))
        stop = (start + len(some), start, start + len(some), len(data))[kind]
        data[start:stop] = b"" if kind in (2, 3) else some
    refusal = ""
    try:
        assert decode_file(bytes(data), FRAME, 10**6).shape == (SIDE, SIDE, 3)
    except InvalidRequest as error:
        refusal = str(error)
    assert "object at 0x" not in refusal
    assert "Traceback" not in refusal
