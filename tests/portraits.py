"""Procedural faces somewhere in a larger picture: what a photo is to a model that was trained on aligned ones."""

import cmath
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.faces import render_face, sample_face

GROUND = (70, 90, 80)


def face(number: int) -> npt.NDArray[np.uint8]:
    """A face in CelebA's frame, uint8 [218, 178, 3]."""
    return render_face(sample_face(3, number))


def scene(
    number: int, scale: float = 1.0, degrees: float = 0.0, at: tuple[float, float] = (0.5, 0.5), side: int = 900
) -> Image.Image:
    """The same face, enlarged, turned clockwise, and put at a place, in shares of a square picture's side."""
    picture = Image.new("RGB", (side, side), GROUND)
    turn = cmath.rect(1 / scale, -math.radians(degrees))  # from the picture to CelebA's frame
    shift = complex(89, 109) - turn * complex(at[0] * side, at[1] * side)
    matrix = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    upright = Image.fromarray(face(number))
    mask = Image.new("L", upright.size, 255)
    size, affine, smooth = picture.size, Image.Transform.AFFINE, Image.Resampling.BICUBIC
    picture.paste(upright.transform(size, affine, matrix, smooth), (0, 0), mask.transform(size, affine, matrix))
    return picture
