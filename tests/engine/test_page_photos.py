"""What the page makes of photos: aligned where that can be, by their middle elsewhere, and said."""

import asyncio

import numpy as np
import pytest
from fuzzing.files import file_of
from PIL import Image
from portraits import GROUND, scene

from engine.page.photos import NoFaceError, Photos
from framing import CELEBA_SOURCE, Frame

FRAME = Frame.of(64, 148, CELEBA_SOURCE)


def test_a_face_is_found_wherever_it_is() -> None:
    photos = Photos(FRAME)
    scenes = [file_of(scene(4, 1.5, 12, (0.35, 0.6))), file_of(scene(4, 2, -8, (0.6, 0.5)))]

    def apart(align: bool) -> float:
        one, other = (asyncio.run(photos.framed(file, align)) for file in scenes)
        assert (one.note, other.note) == ("", "")
        return float(np.abs(one.pixels.astype(float) - other.pixels).mean())

    assert apart(align=True) < apart(align=False) / 3


def test_a_photo_without_a_face_is_refused_but_for_its_middle() -> None:
    photos, photo = Photos(FRAME), file_of(Image.new("RGB", (500, 400), GROUND))
    with pytest.raises(NoFaceError, match=r"shows no face that can be found$"):
        asyncio.run(photos.framed(photo))
    assert (asyncio.run(photos.framed(photo, align=False)).pixels == GROUND).all()


def test_a_framed_photo_is_taken_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert (asyncio.run(Photos(FRAME).framed(file_of(Image.fromarray(pixels)))).pixels == pixels).all()


def test_why_a_photo_is_not_aligned_is_said() -> None:
    photos = Photos(Frame(64, 148, CELEBA_SOURCE))
    framed = asyncio.run(photos.framed(file_of(scene(4))))
    assert framed.note.startswith("The middle of the photo is taken for the face: where eyes and mouth lie")
