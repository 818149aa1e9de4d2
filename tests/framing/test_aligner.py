"""Faces that lie anywhere in a picture, brought to the frame by the real detector."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from portraits import GROUND, face, scene

from framing import CELEBA_LANDMARKS, CELEBA_SOURCE, Aligner, Frame, FramingError
from framing.centerface import CenterFace

FRAME = Frame.of(64, 148, CELEBA_SOURCE)


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner(FRAME)


def middle(image: Image.Image | npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The face itself, without the corners that a turn brings in from outside."""
    return np.asarray(image, np.float64)[70:180, 45:133]


@pytest.mark.parametrize(
    ("number", "scale", "degrees", "at"),
    [(3, 2, 10, (0.5, 0.5)), (5, 2.5, -20, (0.5, 0.4)), (8, 3, 15, (0.4, 0.6)), (10, 2, 30, (0.3, 0.7))],
)
def test_a_turned_and_shifted_face_comes_to_the_frame(
    aligner: Aligner, number: int, scale: float, degrees: float, at: tuple[float, float]
) -> None:
    aligned = aligner.align(scene(number, scale, degrees, at))
    assert (aligned.image.size, aligned.image.mode, aligned.faces) == (CELEBA_SOURCE, "RGB", 1)
    found = CenterFace().find(aligned.image)[0]
    assert np.linalg.norm(found - np.array(CELEBA_LANDMARKS), axis=1).mean() < 4
    upright = aligner.align(Image.fromarray(face(number)).resize((890, 1090)))
    assert np.abs(middle(aligned.image) - middle(upright.image)).mean() < 16


def test_the_largest_of_several_faces_is_taken_and_their_number_is_given(aligner: Aligner) -> None:
    picture = scene(5, 2.5, at=(0.7, 0.5))
    alone = aligner.align(picture)
    small = scene(3, 1.5, at=(0.5, 0.5), side=260)
    picture.paste(small, (0, 300))
    aligned = aligner.align(picture)
    assert aligned.faces == 2
    assert np.abs(middle(aligned.image) - middle(alone.image)).mean() < 5


def test_what_is_framed_already_is_left_alone(aligner: Aligner) -> None:
    image = Image.fromarray(face(1)).crop((15, 35, 163, 183)).resize((64, 64))
    aligned = aligner.align(image)
    assert aligned.image is image
    assert aligned.faces == 0


def test_the_edge_is_repeated_beyond_a_picture(aligner: Aligner) -> None:
    picture = scene(8, 3).crop((300, 0, 900, 900))  # the frame begins 117 pixels further left
    aligned = np.asarray(aligner.align(picture).image)
    assert aligned[60:150, :20].max(axis=2).min() > 100, "black beyond the edge"


def test_a_picture_without_a_face_is_refused(aligner: Aligner) -> None:
    with pytest.raises(FramingError, match="shows no face that can be found; cut the face out"):
        aligner.align(Image.new("RGB", (500, 400), GROUND))


def test_a_face_that_would_have_to_be_invented_is_refused() -> None:
    tiny = scene(1, 1.0, side=300)
    with pytest.raises(FramingError, match=r"a face that is too small: its frame is \d+ pixels wide, at least 500 are"):
        Aligner(Frame(1000, 1000, (1200, 1500), tuple((x * 7, y * 7) for x, y in CELEBA_LANDMARKS))).align(tiny)


@pytest.mark.parametrize("frame", [Frame(64), Frame(64, 148), Frame.of(64, 200, (300, 400))])
def test_a_frame_without_landmarks_is_refused(frame: Frame) -> None:
    with pytest.raises(FramingError, match="where eyes and mouth lie in this model's pictures is not known"):
        Aligner(frame)


def test_a_photo_of_millions_of_pixels_is_found_at_its_own_scale(aligner: Aligner) -> None:
    photo = scene(3, 6, 8, (0.4, 0.5), side=2000)
    aligned = aligner.align(photo)
    upright = aligner.align(Image.fromarray(face(3)).resize((890, 1090)))
    assert np.abs(middle(aligned.image) - middle(upright.image)).mean() < 12
