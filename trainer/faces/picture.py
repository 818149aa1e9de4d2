"""Draws a `Face` as a shaded picture, composed like CelebA's aligned crops.

Subject coordinates have their origin between the eyes: eyes at (+-19.5, 0), nose tip near (0, 24), mouth
corners near (+-16.5, 42), chin near (0, 69), crown near (0, -73). Lengths are in pixels of the 178 x 218
picture. Parts are painted from back to front; each is a function of the canvas, the face and its colours.
"""

from math import sqrt

import numpy as np
import numpy.typing as npt

from trainer.faces.canvas import Array, Canvas
from trainer.faces.clothes import draw_clothes, draw_glasses, draw_hat
from trainer.faces.features import draw_brows, draw_eyes, draw_mouth, draw_nose, mouth_of
from trainer.faces.head import draw_beard, draw_hair, draw_hair_behind, draw_head, draw_mustache, draw_neck
from trainer.faces.palette import hsv, palette_of
from trainer.faces.person import Face

WIDTH, HEIGHT = 178, 218
_ORIGIN = (88.5, 111.0)  # between the eyes of CelebA's aligned crops
_FOCUS = 0.3  # pixels; blur below it is none
_BYTE_DEVIATION = sqrt((256**2 - 1) / 12)  # standard deviation of a random byte
_ACROSS: Array = np.linspace(0, 1, WIDTH, dtype=np.float32)
_DOWN: Array = np.linspace(0, 1, HEIGHT, dtype=np.float32)[:, None]


def render_face(face: Face) -> npt.NDArray[np.uint8]:
    """Draws a face: RGB, uint8 [218, 178, 3]. The same face gives the same picture."""
    origin = (_ORIGIN[0] + face.shift_x, _ORIGIN[1] + face.shift_y)
    canvas = Canvas(_background(face), origin, face.roll, face.scale)
    palette = palette_of(face)
    mouth = mouth_of(face)

    draw_hair_behind(canvas, face, palette)
    draw_neck(canvas, face, palette)
    draw_clothes(canvas, face)
    head = draw_head(canvas, face, palette)
    draw_beard(canvas, face, palette, mouth, head)
    draw_nose(canvas, face, palette)
    draw_mouth(canvas, face, palette, mouth)
    draw_mustache(canvas, face, palette, mouth)
    draw_eyes(canvas, face, palette)
    draw_brows(canvas, face, palette)
    draw_glasses(canvas, face)
    draw_hair(canvas, face, palette, head)
    draw_hat(canvas, face)
    return _develop(canvas.pixels, face)


def _background(face: Face) -> Array:
    """A smooth wall with one soft bright blob: float32 [3, H, W]."""
    value = face.background_value - 0.12 * _DOWN + face.background_slope * (_ACROSS - 0.5)
    blob = np.exp(-8 * (_DOWN - face.background_blob_y) ** 2) * np.exp(-8 * (_ACROSS - face.background_blob_x) ** 2)
    base = hsv(face.background_hue, 0.35, 1)
    other = hsv(face.background_hue + face.background_hue_shift, 0.25, 1)
    wall = np.empty((3, HEIGHT, WIDTH), np.float32)
    for plane, first, second in zip(wall, base, other, strict=True):
        plane[:] = np.minimum(first * value + (0.25 * second) * blob, 255)
    return wall


def _develop(pixels: Array, face: Face) -> npt.NDArray[np.uint8]:
    """Exposes, balances, grains and focuses: float32 [3, H, W] -> uint8 [H, W, 3]."""
    noise = np.random.default_rng(face.noise_seed).bytes(HEIGHT * WIDTH)  # one random byte a pixel, uniform
    grain = np.frombuffer(noise, np.uint8).reshape(HEIGHT, WIDTH).astype(np.float32)
    grain = (grain - 127.5) * (face.noise / _BYTE_DEVIATION)
    picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for channel, tint in enumerate((1 + face.warmth, 1, 1 - face.warmth)):
        plane = (pixels[channel] * (face.exposure * tint) + grain).clip(0, 255)
        if face.blur >= _FOCUS:
            _defocus(plane, face.blur)
        picture[..., channel] = plane
    return picture


def _defocus(plane: Array, radius: float) -> None:
    """Box blur by less than a pixel, in place: [H, W]."""
    share = np.float32(radius / (1 + 2 * radius))
    for lines in (plane, plane.T):
        around = lines[:-2] + lines[2:] - lines[1:-1] - lines[1:-1]
        lines[1:-1] += around * share
