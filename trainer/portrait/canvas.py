"""Anti-aliased drawing on a small float image, in the coordinates of whatever is drawn.

Shapes are closed outlines in subject coordinates (see `Canvas`); each is rasterised by Pillow at several
times the resolution inside its own bounding box, reduced, and blended in numpy. Soft shading is done with
gaussians. Shapes of arrays: N points, H x W pixels; pictures are planar, [3, H, W], because numpy is several
times faster on long rows than on pixels of three numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, cos, floor, radians, sin
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Array: TypeAlias = npt.NDArray[np.float32]
Colour: TypeAlias = tuple[float, float, float]
Outlines: TypeAlias = "Array | list[Array]"
_Box: TypeAlias = tuple[slice, slice]  # rows, columns

_SUPERSAMPLING = 4
_SOFT_SUPERSAMPLING = 2  # enough for feathered edges and for the long edges of large shapes
_LARGE_AREA = 3_000  # pixels
_STEPS = 6  # curve points per control point


def _catmull_rom_basis(steps: int) -> Array:
    t = np.arange(steps) / steps
    basis = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1
    )
    return basis.astype(np.float32)


_BASIS = _catmull_rom_basis(_STEPS)
_ANGLE = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_CIRCLE: Array = np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], axis=1).astype(np.float32)


def _through(control: Array) -> Array:
    """Samples the segments between control[1] ... control[-2]: [N + 3, 2] -> [N * _STEPS, 2]."""
    windows = np.stack([control[:-3], control[1:-2], control[2:-1], control[3:]], axis=1)
    return (_BASIS @ windows).reshape(-1, 2)


def closed_curve(points: npt.ArrayLike) -> Array:
    """Smooth closed outline through control points (Catmull-Rom): [N, 2] -> [6 N, 2]."""
    control = np.asarray(points, np.float32)
    return _through(np.concatenate([control[-1:], control, control[:2]]))


def open_curve(points: npt.ArrayLike) -> Array:
    """Smooth path through control points, both ends included: [N, 2] -> [6 (N - 1) + 1, 2]."""
    control = np.asarray(points, np.float32)
    path = _through(np.concatenate([control[:1], control, control[-1:]]))
    return np.concatenate([path, control[-1:]])


def ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> Array:
    """Outline of an axis-aligned ellipse: [32, 2]."""
    return _CIRCLE * np.array(radii, np.float32) + np.array(centre, np.float32)


def symmetric_curve(
    top: float, right: Sequence[tuple[float, float]], bottom: float | None = None, shift: float = 0.0
) -> Array:
    """Smooth outline that is its own mirror image, then shifted along x.

    Args:
        top: y of a point on the axis, where the outline begins.
        right: control points of the right half, from there on.
        bottom: y of a point on the axis between the halves; none by default.
        shift: of the whole, along x.
    """
    axis = [] if bottom is None else [(0.0, bottom)]
    points = np.array([(0.0, top), *right, *axis, *((-x, y) for x, y in reversed(right))], np.float32)
    points[:, 0] += shift
    return closed_curve(points)


def both_sides(outline: Array, shift: float = 0.0) -> list[Array]:
    """An outline and its mirror image about x = 0, both then shifted along x."""
    along = np.array([shift, 0], np.float32)
    return [outline + along, outline * np.array([-1, 1], np.float32) + along]


def ribbon(path: Array, width: float | Array, closed: bool = False) -> Array:
    """Outline of a stroke along a path; `width` is one number or one per point: [N, 2] -> [2 N (+ 2), 2].

    A closed ribbon runs once round the outer edge and back round the inner one; the two edges meet in a seam
    without area, so that it fills as a ring.
    """
    if closed:
        path = np.concatenate([path, path[:1]])
        padded = np.concatenate([path[-2:-1], path, path[1:2]])
    else:
        padded = np.concatenate([path[:1], path, path[-1:]])
    tangent = padded[2:] - padded[:-2]
    offset = tangent[:, ::-1] * np.array([-0.5, 0.5], np.float32)
    offset *= (width / np.maximum(np.hypot(tangent[:, 0], tangent[:, 1]), 1e-6))[:, None]
    return np.concatenate([path + offset, (path - offset)[::-1]])


def _planes(colour: Colour) -> Array:
    return np.array(colour, np.float32)[:, None, None]


class Canvas:
    """RGB float image whose shapes are given in subject coordinates.

    Subject coordinates are pixels before the pose: the origin is drawn at `origin`, x points right, y down.

    Attributes:
        pixels: the picture, float32 [3, H, W] in 0 ... 255.
        x: the subject's x coordinate of every pixel's centre, float32 [H, W].
        y: likewise for y.
    """

    def __init__(self, pixels: Array, origin: tuple[float, float], roll: float = 0.0, scale: float = 1.0) -> None:
        """Draws on `pixels` [3, H, W] in place, with the subject turned by `roll` degrees and scaled."""
        self.pixels = pixels
        self.height, self.width = pixels.shape[1:]
        turned, tilted = cos(radians(roll)), sin(radians(roll))
        self._matrix = np.array([[turned, tilted], [-tilted, turned]], np.float32) * np.float32(scale)  # of row vectors
        self._origin = np.array(origin, np.float32)
        self._scale = scale
        across = (np.arange(self.width, dtype=np.float32) + (0.5 - origin[0])) / scale
        down = (np.arange(self.height, dtype=np.float32)[:, None] + (0.5 - origin[1])) / scale
        self.x: Array = across * turned + down * tilted
        self.y: Array = down * turned - across * tilted

    def fill(
        self,
        outlines: Outlines,
        colour: Colour,
        *,
        opacity: float = 1.0,
        feather: float = 0.0,
        light: Array | None = None,
        inside: Array | None = None,
    ) -> None:
        """Blends a colour into one or several outlines.

        Args:
            outlines: each float32 [N, 2], in subject coordinates.
            colour: RGB in 0 ... 255.
            opacity: 0 ... 1.
            feather: radius in pixels by which the edge is softened.
            light: factor on the colour per pixel, [3, H, W] or [H, W].
            inside: further opacity per pixel, [H, W], as `mask` returns it.
        """
        drawn = self._rasterise(outlines, feather)
        if drawn is None:
            return
        box, alpha = drawn
        alpha *= np.float32(opacity)
        if inside is not None:
            alpha *= inside[box]
        paint = _planes(colour)
        self._blend(box, alpha, paint if light is None else paint * light[(..., *box)])

    def mask(self, outlines: Outlines, feather: float = 0.0) -> Array:
        """Coverage of outlines in 0 ... 1, float32 [H, W]."""
        coverage = np.zeros((self.height, self.width), np.float32)
        drawn = self._rasterise(outlines, feather)
        if drawn is not None:
            box, alpha = drawn
            coverage[box] = alpha
        return coverage

    def glow(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        colour: Colour,
        opacity: float,
        inside: Array | None = None,
    ) -> None:
        """Blends a colour with gaussian opacity: `radii` are the standard deviations in x and y."""
        spot = self._gaussian(centre, radii, opacity)
        if spot is None:
            return
        box, alpha = spot
        if inside is not None:
            alpha = alpha * inside[box]
        self._blend(box, alpha, _planes(colour))

    def shade(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        tint: Colour,
        inside: Array | None = None,
    ) -> None:
        """Multiplies the picture by `tint` (1 leaves a channel as it is) with gaussian strength."""
        spot = self._gaussian(centre, radii, 1.0)
        if spot is None:
            return
        box, alpha = spot
        if inside is not None:
            alpha = alpha * inside[box]
        self.pixels[(..., *box)] *= 1 + alpha * (_planes(tint) - 1)

    def _blend(self, box: _Box, alpha: Array, paint: Array) -> None:
        region = self.pixels[(..., *box)]
        change = paint - region
        change *= alpha
        region += change

    def _place(self, points: Array) -> Array:
        placed: Array = points @ self._matrix + self._origin
        return placed

    def _box(self, left: float, top: float, right: float, bottom: float) -> _Box | None:
        """The pixels that a rectangle touches, rows and columns; None where it lies outside the picture."""
        rows = slice(max(0, floor(top)), min(self.height, ceil(bottom)))
        columns = slice(max(0, floor(left)), min(self.width, ceil(right)))
        return (rows, columns) if rows.stop > rows.start and columns.stop > columns.start else None

    def _rasterise(self, outlines: Outlines, feather: float) -> tuple[_Box, Array] | None:
        parts = [self._place(outline) for outline in (outlines if isinstance(outlines, list) else [outlines])]
        every = parts[0] if len(parts) == 1 else np.concatenate(parts)
        (left, top), (right, bottom) = every.min(axis=0).tolist(), every.max(axis=0).tolist()
        margin = 1 + 2 * feather
        box = self._box(left - margin, top - margin, right + margin, bottom + margin)
        if box is None:
            return None
        rows, columns = box
        height, width = rows.stop - rows.start, columns.stop - columns.start
        soft = feather > 0 or height * width > _LARGE_AREA
        zoom = _SOFT_SUPERSAMPLING if soft else _SUPERSAMPLING
        tile = Image.new("L", (width * zoom, height * zoom), 0)
        # Pillow's integer coordinates name pixel centres, ours pixel corners.
        corner = np.array([columns.start, rows.start], np.float32)
        draw = ImageDraw.Draw(tile)
        for part in parts:
            draw.polygon(((part - corner) * zoom - 0.5).ravel().tolist(), fill=255)
        tile = tile.reduce(zoom)
        if feather:
            tile = tile.filter(ImageFilter.BoxBlur(feather))
        coverage = np.frombuffer(tile.tobytes(), np.uint8).reshape(height, width)
        return box, coverage * np.float32(1 / 255)

    def _gaussian(
        self, centre: tuple[float, float], radii: tuple[float, float], height: float
    ) -> tuple[_Box, Array] | None:
        x, y = self._place(np.array(centre, np.float32)).tolist()
        wide, tall = radii[0] * self._scale, radii[1] * self._scale
        box = self._box(x - 3 * wide, y - 3 * tall, x + 3 * wide, y + 3 * tall)
        if box is None:
            return None
        rows, columns = box
        down = (np.arange(rows.start, rows.stop, dtype=np.float32) + (0.5 - y)) / tall
        across = (np.arange(columns.start, columns.stop, dtype=np.float32) + (0.5 - x)) / wide
        column: Array = height * np.exp(-0.5 * down * down)
        return box, column[:, None] * np.exp(-0.5 * across * across)
