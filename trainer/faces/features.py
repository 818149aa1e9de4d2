"""Eyes, brows, nose and mouth."""

from dataclasses import dataclass

import numpy as np

from trainer.faces.canvas import Array, Canvas, both_sides, curve, ellipse, ribbon
from trainer.faces.palette import Palette, between, mix, times
from trainer.faces.person import Face

_LASHES = (40, 28, 26)
_TEETH = (242, 238, 230)

# Along the lids and brows, each a curve through as many control points, a stroke's width or its share of the width.
_LID = np.linspace(0, 1, len(curve(np.zeros((5, 2)))))
_MALE_LASHES: Array = np.interp(_LID, (0, 0.4, 0.8, 1), (0.8, 1.8, 2, 1)).astype(np.float32)
_FEMALE_LASHES: Array = np.append(np.interp(_LID, (0, 0.4, 0.8, 1), (1, 2.8, 3.8, 2.4)), 0.6).astype(np.float32)
_BROW = np.linspace(0, 1, len(curve(np.zeros((4, 2)))))
_BROW_WIDTHS: Array = np.interp(_BROW, (0, 0.12, 0.55, 1), (0.75, 1, 0.95, 0.25)).astype(np.float32)

# From corner to corner of the mouth.
_ACROSS: Array = np.linspace(-1, 1, 25, dtype=np.float32)
_BULGE: Array = 1 - _ACROSS * _ACROSS
_WAVE: Array = 0.6 * np.cos(np.pi * _ACROSS)
_CUPIDS_BOW: Array = 1.3 * np.exp(-((_ACROSS / 0.16) ** 2))
_UPPER_LIP: Array = 4.6 * _BULGE**0.8
_LOWER_LIP: Array = 6.4 * _BULGE**0.7


def draw_eyes(canvas: Canvas, face: Face, palette: Palette) -> None:
    """Whites, irises, pupils, highlights, lids and lashes; the left eye mirrors the right one."""
    male = face.has("Male")
    centre, half = 19.5 * face.eye_spacing, (10 if male else 10.8) * face.eye_size
    if face.has("Narrow_Eyes"):
        upper, lower = between(1.9, 2.4, face.eye_opening_degree), 1.7
    else:
        upper = between(5.0, 6.0, face.eye_opening_degree) + (0 if male else 0.6)
        lower = between(3.6, 4.2, face.eye_opening_degree)
    inner, outer = (-half, 1.2), (half, -0.6)
    lid = curve([inner, (-0.55 * half, -0.72 * upper), (0, -upper), (0.6 * half, -0.78 * upper), outer])
    rim = curve([outer, (0.5 * half, 0.8 * lower), (-0.1 * half, lower), (-0.65 * half, 0.7 * lower), inner])
    lid[:, 0] += centre
    rim[:, 0] += centre

    opening = canvas.mask(both_sides(np.concatenate([lid, rim[1:-1]]), face.yaw))
    canvas.paint(opening, (238, 234, 230))
    for radius, colour in ((5.6, times(palette.iris, (0.55, 0.55, 0.55))), (4.6, palette.iris), (2.3, (14, 10, 10))):
        canvas.fill(both_sides(ellipse((centre, -0.6), (radius, radius)), face.yaw), colour, inside=opening)
    glint_x = 1.8 if face.light_side > 0 else -1.8
    glints = [ellipse((side * centre + face.yaw + glint_x, -2.4), (1.4, 1.4)) for side in (-1, 1)]
    canvas.fill(glints, (255, 255, 255), opacity=0.95, inside=opening)

    crease = lid + np.array([0, -3.6], np.float32)
    canvas.fill(both_sides(ribbon(crease, 1.3), face.yaw), palette.shadow, opacity=0.5, feather=0.7)
    canvas.fill(both_sides(ribbon(rim, 1.0), face.yaw), palette.shadow, opacity=0.5)
    if not male:  # lashes that sweep out beyond the corner
        lid = np.concatenate([lid, np.array([(centre + half + 3.2, -3.4)], np.float32)])
    lashes = ribbon(lid, _MALE_LASHES if male else _FEMALE_LASHES)
    canvas.fill(both_sides(lashes, face.yaw), _LASHES, opacity=0.92)


def draw_brows(canvas: Canvas, face: Face, palette: Palette) -> None:
    """Two arcs that taper outwards; bushy ones are more than twice as thick as others."""
    male = face.has("Male")
    x, y = 19.5 * face.eye_spacing, (-15 if male else -17) + face.brow_raise
    if face.has("Bushy_Eyebrows"):
        thickness = between(7.5, 9.0, face.brow_degree)
    else:
        thickness = between(2.8, 3.4, face.brow_degree) if male else between(2.1, 2.6, face.brow_degree)
    arch = face.brow_arch * (0.7 if male else 1.0)
    path = curve([(x - 11.5, y + 1), (x - 4, y - arch * 0.5), (x + 6, y - arch), (x + 14, y + 1.5)])
    canvas.fill(both_sides(ribbon(path, thickness * _BROW_WIDTHS), face.yaw), palette.brow, opacity=0.92, feather=0.6)


def draw_nose(canvas: Canvas, face: Face, palette: Palette) -> None:
    """Bridge with a shaded side, lit tip, wings and nostrils."""
    x, y = 4 * face.yaw, 24 * face.nose_length
    half = (10.5 if face.has("Male") else 8.8) * face.nose_width
    dark = -1 if face.light_side > 0 else 1
    shaded = [(3.5, -6), (4.5, 10), (half, y), (4, y + 2), (1.5, 4)]
    bridge = curve([(dark * across + x * down / y, down) for across, down in shaded], closed=True)
    canvas.fill(bridge, palette.shadow, opacity=0.18 + 0.8 * face.light_strength, feather=2.2)
    canvas.glow((x / 2 - dark, 8), (2.2, 10), palette.shine, 0.4)
    canvas.glow((x - 1.5 * dark, y - 3), (3.6, 3), palette.shine, 0.5)
    canvas.shade((x, y + 6.5), (half * 0.8, 2.8), (0.72, 0.64, 0.62))
    wing = curve([(half * 0.78, y - 6), (half, y - 1), (half * 0.8, y + 4)])
    canvas.fill(both_sides(ribbon(wing, 1.6), x), palette.shadow, opacity=0.6)
    nostril = ellipse((half * 0.45, y + 3.4), (half * 0.25, 1.6))
    canvas.fill(both_sides(nostril, x), times(palette.skin, (0.28, 0.18, 0.16)), opacity=0.8)


@dataclass(frozen=True)
class Mouth:
    """The lines of a mouth, each from the left to the right corner: float32 [N, 2]."""

    upper_edge: Array
    upper_line: Array
    lower_line: Array
    lower_edge: Array
    open: bool

    @property
    def corner(self) -> tuple[float, float]:
        """The right corner."""
        return float(self.upper_line[-1, 0]), float(self.upper_line[-1, 1])

    @property
    def top(self) -> float:
        """Height of the upper lip's middle."""
        return float(self.upper_edge[len(self.upper_edge) // 2, 1])

    @property
    def bottom(self) -> float:
        """Height of the lower lip's middle."""
        return float(self.lower_edge[len(self.lower_edge) // 2, 1])


def mouth_of(face: Face) -> Mouth:
    """The shape that smile, opening, width and fullness give a mouth."""
    smile = between(0.8, 1.0, face.smile_degree) if face.has("Smiling") else between(-0.25, 0.05, face.smile_degree)
    gap = between(7.5, 10.5, face.mouth_opening_degree) if face.has("Mouth_Slightly_Open") else 0.0
    half = (15.5 + 7.5 * smile) * face.mouth_width
    thick = (0.85 if face.has("Male") else 1.15) * face.lip_fullness
    line = (41.5 - 7.5 * smile) + (12.0 * smile) * _BULGE + _WAVE
    upper, lower = line - 0.3 * gap * _BULGE, line + 0.7 * gap * _BULGE
    x = half * _ACROSS + 2 * face.yaw

    top, bottom = upper - thick * _UPPER_LIP + _CUPIDS_BOW, lower + thick * _LOWER_LIP
    lines = [np.stack([x, y], axis=1) for y in (top, upper, lower, bottom)]
    return Mouth(lines[0], lines[1], lines[2], lines[3], gap > 0)


def draw_mouth(canvas: Canvas, face: Face, palette: Palette, mouth: Mouth) -> None:
    """Lips, and teeth where the mouth is open; a smile folds the cheeks."""
    x, (corner_x, corner_y) = 2 * face.yaw, mouth.corner
    smiling = face.has("Smiling")
    if smiling:
        fold = curve([(12 + face.yaw, 24), (corner_x - x + 1.5, 29), (corner_x - x + 4.5, corner_y + 3)])
        canvas.fill(both_sides(ribbon(fold, 2.8), x), palette.shadow, opacity=0.55, feather=1.3)
    canvas.shade((x, mouth.bottom + 2), (11, 2.4), (0.84, 0.78, 0.76))
    upper_lip = np.concatenate([mouth.upper_edge, mouth.upper_line[::-1]])
    lower_lip = np.concatenate([mouth.lower_line, mouth.lower_edge[::-1]])
    canvas.fill(upper_lip, times(palette.lips, (0.82, 0.78, 0.78)))
    canvas.fill(lower_lip, palette.lips)
    shine = mix(palette.lips, (255, 240, 235), 0.6)
    canvas.glow((x + 3 * face.light_side, mouth.bottom - 3), (6, 1.5), shine, 0.5)
    if mouth.open:
        canvas.fill(np.concatenate([mouth.upper_line, mouth.lower_line[::-1]]), (66, 20, 22))
        bite = mouth.upper_line + (0.62 if smiling else 0.28) * (mouth.lower_line - mouth.upper_line)
        canvas.fill(np.concatenate([mouth.upper_line, bite[::-1]]), _TEETH)
    else:
        canvas.fill(ribbon(mouth.upper_line, 1.7), times(palette.lips, (0.42, 0.34, 0.34)), opacity=0.9)
    for side in (-1, 1):
        canvas.shade((x + side * (corner_x - x), corner_y), (2.4, 2.2), (0.66, 0.6, 0.58))
