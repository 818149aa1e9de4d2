"""What becomes of pictures of all sizes, in training and in serving."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from portraits import face

from engine.errors import InvalidRequest
from engine.images import decode_file
from framing import CELEBA_LANDMARKS, CELEBA_SOURCE, Frame, TooLongError, TooSmallError, prepare
from trainer.data import pixels
from trainer.errors import DataError

FRAME = Frame.of(64, 148, CELEBA_SOURCE)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [64, 128])
def test_what_a_model_gave_is_taken_as_it_is(size: int) -> None:
    image = noise(size, size)
    np.testing.assert_array_equal(prepare(image, Frame.of(size, 148, CELEBA_SOURCE)), np.asarray(image))


@pytest.mark.parametrize("scale", [2, 3, 10])
def test_a_larger_picture_of_the_same_scene_gives_the_same_face(scale: int) -> None:
    small = Image.fromarray(face(0))
    large = small.resize((178 * scale, 218 * scale), Image.Resampling.BICUBIC)
    difference = prepare(large, FRAME).astype(float) - prepare(small, FRAME)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ((178, 218), 148), ((356, 436), 296), ((1024, 1024), 695), ((250, 250), 170), ((4000, 3000), 2037),
        ((3000, 4000), 2494), ((200, 148), 100), ((178, 500), 148),
    ],
)  # fmt: skip
def test_the_part_that_is_cut_out_covers_the_same_share_of_the_frame(size: tuple[int, int], side: int) -> None:
    """The frame's source, scaled to fit into the picture, has the crop's share of its sides in the middle."""
    assert FRAME.side(*size) == side
    assert FRAME.brings(*size) == (size != CELEBA_SOURCE)


def test_proportions_are_kept() -> None:
    """A circle in the middle of a wide picture stays one."""
    y, x = np.mgrid[:600, :1000]
    disc = Image.fromarray(np.where((x - 500) ** 2 + (y - 300) ** 2 < 100**2, 255, 0).astype(np.uint8))
    bright = prepare(disc, FRAME)[..., 0] > 127
    assert bright.any(0).sum() == bright.any(1).sum() == round(200 / 407 * 64)


@pytest.mark.parametrize(
    "size", [(178, 218), (64, 64), (148, 148), (149, 301), (250, 250), (640, 480), (480, 640), (591, 148), (1023, 767)]
)
@pytest.mark.parametrize("frame", [FRAME, Frame(64), Frame(64, 148)], ids=["celeba", "cropped", "older bundle"])
def test_training_and_serving_give_the_same_pixels(tmp_path: Path, size: tuple[int, int], frame: Frame) -> None:
    path = tmp_path / "x.png"
    noise(*size).save(path)
    np.testing.assert_array_equal(pixels.read(path, frame).image, decode_file(path.read_bytes(), frame))


@pytest.mark.parametrize(("size", "mend"), [((147, 218), "--crop 0"), ((65, 64), "--crop 0"), ((2000, 499), "--align")])
def test_what_cannot_be_framed_is_refused_with_the_mend(tmp_path: Path, size: tuple[int, int], mend: str) -> None:
    path = tmp_path / "x.png"
    noise(*size).save(path)
    with pytest.raises(DataError, match=rf"x\.png is {size[0]}x{size[1]} pixels, .*{mend}"):
        pixels.read(path, FRAME)
    with pytest.raises(InvalidRequest, match=rf"^is {size[0]}x{size[1]} pixels, .*(64x64 that is framed|cut the face)"):
        decode_file(path.read_bytes(), FRAME)


def test_without_a_crop_there_is_no_source_and_nothing_to_align_to() -> None:
    assert Frame.of(64, 0, CELEBA_SOURCE) == Frame(64)
    assert Frame.of(64, 148, CELEBA_SOURCE).landmarks == CELEBA_LANDMARKS
    assert Frame.of(64, 200, (300, 400)).landmarks is None


def test_the_two_reasons_are_told_apart() -> None:
    with pytest.raises(TooSmallError):
        FRAME.check(100, 100)
    with pytest.raises(TooLongError):
        FRAME.check(148, 593)
    FRAME.check(148, 592)
