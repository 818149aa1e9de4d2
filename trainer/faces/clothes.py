"""What a face wears: clothes, glasses, hats."""

import numpy as np

from trainer.faces.canvas import Array, Canvas, Colour, both_sides, curve, ellipse, ribbon, symmetric_curve
from trainer.faces.palette import hsv
from trainer.faces.person import Face

_FRAMES: tuple[Colour, ...] = ((22, 22, 26), (92, 50, 26), (158, 24, 30), (88, 96, 112))


def draw_clothes(canvas: Canvas, face: Face) -> None:
    """Shoulders and a round neckline."""
    wide = 88.0 if face.has("Male") else 74.0
    right = [(20.0, 101.0), (34.0, 88.0), (wide - 14, 97.0), (wide + 8, 116.0), (wide + 14, 140.0)]
    canvas.fill(symmetric_curve(108, right), hsv(face.clothes_hue, 0.5, face.clothes_value))
    neckline = curve([(-34, 88), (-20, 101), (0, 108), (20, 101), (34, 88)])
    canvas.fill(ribbon(neckline, 4), hsv(face.clothes_hue, 0.5, face.clothes_value * 0.75))


def draw_glasses(canvas: Canvas, face: Face) -> None:
    """Rims, bridge, temples, and tinted lenses with a glint."""
    if not face.has("Eyeglasses"):
        return
    frame = _FRAMES[face.glasses_colour]
    lens = _lens(face)
    lenses = both_sides(lens, face.yaw)
    glass = canvas.mask(lenses)
    canvas.paint(glass, (150, 170, 185), opacity=0.1 + 0.16 * face.glasses_tint)
    slant = np.array([(-9, 9), (-3, 9), (10, -11), (4, -11)], np.float32)
    glints = [outline.mean(axis=0) + slant for outline in lenses]
    canvas.fill(glints, (255, 255, 255), opacity=0.22, inside=glass)
    temple = np.array([(33, -3), (52 * face.head_width, -5)], np.float32)
    canvas.fill(both_sides(ribbon(temple, 3.4), face.yaw), frame)
    canvas.fill(both_sides(ribbon(lens, 4.4, closed=True), face.yaw), frame)
    bridge = curve([(face.yaw - 7, -1), (face.yaw, -4.5), (face.yaw + 7, -1)])
    canvas.fill(ribbon(bridge, 3.4), frame)


def _lens(face: Face) -> Array:
    """Outline of the right lens: round, rectangular or aviator."""
    x, y, size = 20.5 * face.eye_spacing, 2.0, face.glasses_size
    if face.glasses_shape == 0:
        return ellipse((x, y), (15.5 * size, 15 * size))
    if face.glasses_shape == 1:
        corners = [(-15.5, -10), (-12, -12), (12, -12), (16, -10.5), (16, 8), (12.5, 12), (-12, 12), (-15, 9)]
    else:
        corners = [(-14, -9.5), (-4, -12), (9, -12), (16, -9), (15, 5), (7, 15), (-4, 14), (-12, 4)]
    outline = np.array(corners, np.float32) * np.float32(size) + np.array((x, y), np.float32)
    return curve(outline, closed=True)


def draw_hat(canvas: Canvas, face: Face) -> None:
    """A beanie, a cap or a brimmed hat, high enough for the hair's sides and bangs to show below it."""
    if not face.has("Wearing_Hat"):
        return
    base = hsv(face.hat_hue, 0.55, face.hat_value)
    dark = hsv(face.hat_hue, 0.6, face.hat_value * 0.62)

    def light(x: Array, _: Array) -> Array:
        across = x * (1 / 60)
        level: Array = (face.light_strength * face.light_side - 0.12 * across) * across
        return level + np.float32(0.95)

    turn = -3 * face.yaw
    canvas.shade((turn, -36), (40, 5), (0.7, 0.64, 0.62))
    wide = 55 + 7 * face.hair_volume  # hair lies under it
    dome = [(wide, -44.0), (wide - 2, -66.0), (0.75 * wide, -88.0), (0.36 * wide, -99.0)]
    cuff = [(0.7 * wide, -38.5), (wide + 1, -36.0), (wide + 2, -46.0), (wide, -56.0), (0.7 * wide, -58.5)]
    cap = [(0.6 * wide, -42.0), (wide, -40.0), (wide - 1, -62.0), (0.75 * wide, -85.0), (0.36 * wide, -96.0)]
    visor = [(28.0, -36.0), (48.0, -41.0), (44.0, -49.0), (24.0, -54.0)]
    crown = [(50.0, -44.0), (48.0, -70.0), (38.0, -92.0), (16.0, -99.0)]
    band = [(50.0, -43.0), (51.0, -46.0), (49.5, -58.0), (46.0, -60.0)]
    brim = [(50.0, -37.0), (88.0, -44.0), (86.0, -49.0), (50.0, -47.0)]
    parts = (
        [(-44, dome, -102, base), (-39, cuff, -59, dark)],
        [(-44, cap, -99, base), (-35, visor, -56, dark)],
        [(-44, crown, -95, base), (-42, band, -60, dark), (-35, brim, -46, base)],
    )
    for top, right, bottom, colour in parts[face.hat_style]:
        canvas.fill(symmetric_curve(top, right, bottom, turn), colour, light=light)
