"""What becomes of image files, in training and in serving: the same, pixel by pixel."""

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fuzzing.files import file_of, mend_png
from PIL import Image

from engine.errors import InvalidRequest
from engine.images import MAX_FILE_PIXELS, decode_file
from framing import Frame, prepare
from trainer.data import pixels
from trainer.errors import DataError

ORIENTATION = 0x0112


def noise(width: int, height: int, channels: int = 4) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (37, 41), dtype=np.uint16))
    return Image.fromarray(noise(41, 37)).convert(mode)


@pytest.mark.parametrize("crop", [0, 30])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"),
        ("RGB", "png"), ("L", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("I;16", "png"),
        ("RGB", "webp"), ("RGBA", "webp"),
    ],
)  # fmt: skip
def test_every_mode_is_served_as_it_is_trained(tmp_path: Path, mode: str, suffix: str, crop: int) -> None:
    path = tmp_path / f"x.{suffix}"
    as_mode(mode).save(path)
    assert Image.open(path).mode == mode
    trained = pixels.read(path, Frame(16, crop or None)).image
    assert trained.shape == (16, 16, 3)
    assert len(np.unique(trained)) > 10
    np.testing.assert_array_equal(decode_file(path.read_bytes(), Frame(16, crop or None)), trained)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_photographs_stand_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The picture has one red corner, upper left; the camera stored it turned or mirrored, and said so."""
    upright = Image.new("RGB", (48, 48), "blue")
    upright.paste("red", (0, 0, 24, 24))
    stored = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180], 4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    image = upright
    for method in stored.get(orientation, []):
        image = image.transpose(method)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo.{suffix}"
    image.save(path, exif=exif)
    trained = pixels.read(path, Frame(16)).image
    assert trained[2, 2, 0] > 200
    assert trained[[2, 13, 13], [13, 2, 13], 0].max() < 60
    np.testing.assert_array_equal(decode_file(path.read_bytes(), Frame(16)), trained)


def test_a_turned_photograph_is_cropped_as_it_stands(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "photo.png"
    image = Image.fromarray(noise(61, 40, 3))
    image.save(path, exif=exif)
    expected = prepare(image.transpose(Image.Transpose.ROTATE_270), Frame(16, 32))
    np.testing.assert_array_equal(pixels.read(path, Frame(16, 32)).image, expected)
    np.testing.assert_array_equal(decode_file(path.read_bytes(), Frame(16, 32)), expected)


def test_a_transparent_palette_colour_shows_white(tmp_path: Path) -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([0, 0, 0, 200, 100, 0])
    image.paste(1, (0, 0, 16, 32))
    image.save(tmp_path / "x.png", transparency=0)
    trained = pixels.read(tmp_path / "x.png", Frame(32)).image
    assert trained[16, 4].tolist() == [200, 100, 0]
    assert trained[16, 28].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(decode_file((tmp_path / "x.png").read_bytes(), Frame(32)), trained)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_keep_their_range(tmp_path: Path, suffix: str) -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint16) * 257, 256).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / f"x.{suffix}")
    image = pixels.read(tmp_path / f"x.{suffix}", Frame(256)).image
    np.testing.assert_array_equal(image[:, 7, 1], np.arange(256))


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
        assert getattr(Image.open(tmp_path / f"x.{suffix}"), "n_frames", 1) == 2
        image = pixels.read(tmp_path / f"x.{suffix}", Frame(16)).image
        assert image[8, 8, 0] > 240
        assert image[8, 8, 2] < 15
        if suffix != "gif":
            np.testing.assert_array_equal(decode_file((tmp_path / f"x.{suffix}").read_bytes(), Frame(16)), image)


@pytest.mark.parametrize(
    ("size", "crop"), [((8001, 8000), 0), ((20_000, 20_000), 0), ((20, 400), 0), ((20, 400), 21), ((10, 200), 0)]
)
def test_what_training_refuses_for_its_size_serving_refuses(tmp_path: Path, size: tuple[int, int], crop: int) -> None:
    assert pixels.MAX_PIXELS == MAX_FILE_PIXELS
    path = tmp_path / "x.png"
    fits = size[0] * size[1] < 1_000_000  # what is too large for memory only claims to be there
    file = file_of(Image.new("L", size if fits else (1, 1)))
    path.write_bytes(mend_png(file[:16] + struct.pack(">LL", *size) + file[24:]))
    with pytest.raises(DataError, match=r"x\.png .*; (make it smaller|cut the face out|use --crop 0)") as refused:
        pixels.read(path, Frame(16, crop or None))
    assert fits or "more than the accepted 64,000,000 pixels" in str(refused.value)
    with pytest.raises(InvalidRequest, match=r"make it smaller|cut the face out|send at least"):
        decode_file(path.read_bytes(), Frame(16, crop or None))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"bad\.jpg is empty \(0 bytes\)"),
        (b"hello, world", r"bad\.jpg is not an image \(it starts with b'hello, w'\)"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", r"bad\.jpg "),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DataError, match=said):
        pixels.read(tmp_path / "bad.jpg", Frame(16))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise(60, 60, 3)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"x\.{suffix} (cannot be decoded|is not an image)"):
        pixels.read(path, Frame(16))


@pytest.mark.parametrize("values", [np.full((20, 20), 0.5, np.float32), np.full((20, 20), 70_000, np.int32)])
def test_values_without_a_range_are_refused_with_the_mend(tmp_path: Path, values: npt.NDArray[np.generic]) -> None:
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff cannot be decoded .*save it with 8 bits a channel"):
        pixels.read(tmp_path / "x.tiff", Frame(16))
