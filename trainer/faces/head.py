"""The head without its features: skull, ears, neck, hair and beard, and what light makes of them."""

from dataclasses import dataclass

import numpy as np

from trainer.faces.canvas import Array, Canvas, Light, Mask, both_sides, curve, ellipse, symmetric_curve
from trainer.faces.features import Mouth
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


def draw_hair_behind(canvas: Canvas, face: Face, palette: Palette) -> None:
    """The part of long hair that falls behind neck and shoulders."""
    if face.has("Male"):
        return
    end, wide = between(58, 105, face.hair_length), between(58, 66, face.hair_volume)
    right = [(40.0, -66.0), (wide - 4, -25.0), (wide, 20.0), (wide + 2, end - 8), (40, end + 4)]
    outline = symmetric_curve(-78, right, shift=-3 * face.yaw)
    canvas.fill(outline, times(palette.hair, (0.72, 0.7, 0.7)))


def draw_hair(canvas: Canvas, face: Face, palette: Palette, head: Head) -> None:
    """Hair around the face, short or long, with or without bangs over the forehead."""
    if face.has("Bald"):
        return
    if face.has("Male"):
        wide, high = between(52, 56, face.hair_volume), between(77, 87, face.hair_volume)
        outer = [(45.0, 9.0), (wide - 2, 2), (wide, -14), (0.93 * wide, -46), (0.62 * wide, -0.9 * high)]
        inner = [(42.0, 6.0), (43.5, -10.0), (41.0, -26.0), (30.0, -42.0)]
    else:
        wide, high = between(56, 63, face.hair_volume), between(79, 88, face.hair_volume)
        end = between(54, 100, face.hair_length)
        outer = [(46, end), (wide + 2, end - 12), (wide, 15), (0.94 * wide, -34), (0.62 * wide, -0.88 * high)]
        inner = [(43, end - 4), (44, 50), (46, 22), (45, -8), (40, -28), (28, -44)]
    part = 15 * face.hair_parting
    outside = [*outer, (0, -high), *((-x, y) for x, y in reversed(outer))]
    hairline = [*((-x, y) for x, y in inner), (part - 7, -51), (part, -54), (part + 7, -51), *reversed(inner)]
    points = np.array([*outside, *hairline], np.float32)
    points[:, 0] = points[:, 0] * face.head_width - 3 * face.yaw
    strands = _strands(face)
    canvas.shade((0, -44), (30, 5), (0.86, 0.8, 0.78), head.mask)
    canvas.fill(curve(points, closed=True), palette.hair, light=strands, feather=0.7)
    if face.has("Bangs"):
        edge, tilt = between(-25, -22, face.bangs_degree), 3 * face.hair_parting
        over = [(-47, -8), (-50, -40), (-30, -66), (0, -72), (30, -66), (50, -40), (47, -8)]
        fringe = [(40, edge + 3), (26, edge + tilt), (13, edge + 2), (0, edge - 1)]
        fringe += [(-13, edge + 2), (-26, edge - tilt), (-40, edge + 3)]
        points = np.array([*over, *fringe], np.float32)
        points[:, 0] = points[:, 0] * face.head_width - 2 * face.yaw
        canvas.shade((0, edge + 3), (26, 3.5), (0.8, 0.74, 0.72), head.mask)
        canvas.fill(curve(points, closed=True), palette.hair, light=strands, feather=0.7)


def draw_beard(canvas: Canvas, face: Face, palette: Palette, mouth: Mouth, head: Head) -> None:
    """A beard over jaw and chin; the upper lip stays free."""
    if face.has("No_Beard"):
        return
    corner_x, corner_y = mouth.corner
    corner_x += 4 - 2 * face.yaw
    rise = between(-4, 3, face.beard_degree)
    upper = [(46.0, 6.0), (42, 24 - rise), (33, 38 - rise), (corner_x, max(corner_y + 5, 41)), (10, mouth.bottom + 3.5)]
    # Beyond the head the outline is arbitrary: the head's mask cuts it.
    right = [(30.0, 86.0), (55, 60), (60, 20), (58, 2), *upper]
    area = symmetric_curve(90, right, mouth.bottom + 4, 2 * face.yaw)
    opacity = between(0.84, 0.95, face.beard_degree)
    canvas.fill(area, palette.beard, opacity=opacity, feather=2.0, light=head.light, inside=head.mask)


def draw_mustache(canvas: Canvas, face: Face, palette: Palette, mouth: Mouth) -> None:
    """A moustache over the upper lip, from corner to corner."""
    if not face.has("Mustache"):
        return
    thick, middle, (corner_x, corner_y) = between(7.5, 9.5, face.mustache_degree), mouth.top, mouth.corner
    tip = (corner_x - 2 * face.yaw + 2.5, corner_y + 2)
    right = [(7, middle - 0.78 * thick), (14, middle - 0.3 * thick), tip, (13, middle + 2.8), (6, middle + 2.2)]
    outline = symmetric_curve(middle - 0.72 * thick, right, middle + 1.2, 2 * face.yaw)
    canvas.fill(outline, palette.beard, opacity=0.95, feather=0.8)


def _strands(face: Face) -> Light:
    """Light on hair: strands that fan out from the crown, and a band of sheen."""

    def light(x: Array, y: Array) -> Array:
        fan = (x - 12 * face.hair_parting) / (y + 165)
        strands = 0.045 * np.sin(58 * fan + 1.6 * np.sin(21 * fan + face.hair_phase))
        across, down = x - 10 * face.light_side, y + 5
        arch = np.sqrt(across * across + down * down) - 64
        sheen = 0.28 * np.exp(arch * arch * (-1 / 81))
        level: Array = strands + sheen + (face.light_strength * face.light_side / 60) * x + 0.96
        return level

    return light
