"""The head without features and hair: skull, ears, neck, and what light makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.faces.canvas import Array, Canvas, Light, Mask, both_sides, curve, ellipse, symmetric_curve
from trainer.faces.palette import Palette, between, times
from trainer.faces.person import Face

_WARMTH: Array = np.array([0.85, 1.05, 1.15], np.float32)[:, None, None]  # of light on skin


@dataclass(frozen=True)
class Head:
    """Where the head is in the picture, and the light on it."""

    mask: Mask
    light: Light


def draw_neck(canvas: Canvas, face: Face, palette: Palette) -> None:
    """Neck and collar bones, in the head's shadow."""
    wide = 30 if face.has("Male") else 22
    neck = symmetric_curve(24, [(wide, 30), (wide, 84), (wide + 26, 104)], 116)
    canvas.fill(neck, times(palette.skin, (0.86, 0.82, 0.8)))
    canvas.shade((-2 * face.yaw, 66), (26, 11), (0.62, 0.54, 0.52))
    canvas.shade((-face.light_side * wide, 82), (13, 22), (0.85, 0.8, 0.78))


def draw_head(canvas: Canvas, face: Face, palette: Palette) -> Head:
    """Ears and head, with eye sockets, temples, cheeks, brow and chin modelled by light and shadow."""
    head = Head(canvas.mask(_outline(face)), _light(face))
    wide = 50.5 * face.head_width
    rim = [(-5, -11), (5, -13), (7.5, -3), (5, 10), (1, 19), (-5, 15)]
    ear = curve([(wide + x, y) for x, y in rim], closed=True)
    canvas.fill(both_sides(ear, -3 * face.yaw), times(palette.skin, (0.95, 0.88, 0.86)), light=head.light)
    hollow = both_sides(ellipse((wide + 3, 0), (2.3, 8)), -3 * face.yaw)
    canvas.fill(hollow, palette.shadow, opacity=0.5, feather=1)
    canvas.paint(head.mask, palette.skin, light=head.light)
    _model(canvas, face, palette, head.mask)
    return head


def _outline(face: Face) -> Array:
    wide = 50 * face.head_width
    if face.has("Male"):
        cheek, jaw, chin = 0.92, between(0.7, 0.8, face.jaw_degree), 0.36
    else:
        cheek, jaw, chin = 0.86, between(0.54, 0.62, face.jaw_degree), 0.24
    skull = [(22, -69), (40, -53), (0.97 * wide, -27), (wide, 0), (0.97 * wide, 19)]
    right = [*skull, (cheek * wide, 37), (jaw * wide, 54), (chin * wide, 66)]
    outline = symmetric_curve(-73, right, 69, -3 * face.yaw)
    outline[:, 1] *= face.head_length
    return outline


def _light(face: Face) -> Light:
    """Light as on an ellipsoid; shadows on skin are warm, so that blue falls faster than red."""

    def light(x: Array, y: Array) -> Array:
        across = (x + 3 * face.yaw) * (1 / (52 * face.head_width))
        down = y * (1 / 74)
        distance = across * across + down * down
        level: Array = -0.11 * np.minimum(distance * distance, 2)
        level = level + (face.light_strength * face.light_side) * across - (0.5 * face.light_strength) * down
        return 1 + _WARMTH * level

    return light


def _model(canvas: Canvas, face: Face, palette: Palette, inside: Mask) -> None:
    lit = face.light_side
    for side in (-1, 1):
        eye_x = side * 19.5 * face.eye_spacing + face.yaw
        canvas.shade((eye_x, -5), (10, 6), (0.84, 0.78, 0.76), inside)
        canvas.shade((side * 46 - 3 * face.yaw, 24), (9, 16), (0.93, 0.9, 0.89), inside)
        canvas.glow((side * 25 + face.yaw, 18), (10, 7), palette.shine, 0.1 + 0.08 * side * lit, inside)
        if face.has("Rosy_Cheeks"):
            strength = between(0.6, 0.75, face.cheek_degree) + 0.2 * (1 - palette.skin[0] / 255)
            canvas.glow((side * 29 + face.yaw, 24), (9, 7.5), palette.blush, strength, inside)
    canvas.glow((6 * lit, -36), (20, 12), palette.shine, 0.16, inside)
    canvas.shade((face.yaw, 54.5), (9, 3), (0.86, 0.8, 0.78), inside)
    canvas.glow((face.yaw + 2 * lit, 62), (8, 4), palette.shine, 0.12, inside)
    if face.has("Bald"):
        canvas.glow((12 * lit, -57), (13, 7), palette.shine, 0.8, inside)
