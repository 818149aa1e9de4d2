"""Anti-aliased drawing on a small float image, in the coordinates of whatever is drawn.

Shapes are closed outlines in subject coordinates (see `Canvas`); each is rasterised by Pillow at several
times the resolution inside its own bounding box, reduced, and blended in numpy. Soft shading is done with
gaussians. Shapes of arrays: N points, H x W pixels; pictures are planar, [3, H, W], because numpy is several
times faster on long rows than on pixels of three numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, cos, floor, radians, sin
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Array: TypeAlias = npt.NDArray[np.float32]
Point: TypeAlias = tuple[float, float]
Colour: TypeAlias = tuple[float, float, float]
Outlines: TypeAlias = "Array | list[Array]"
Light: TypeAlias = Callable[[Array, Array], Array]
"""Factor on a colour, [H, W] or [3, H, W], at pixels whose subject coordinates x and y are given, [H, W] each."""

_Box: TypeAlias = tuple[slice, slice]  # rows, columns

_SUPERSAMPLING = 3
_SOFT_SUPERSAMPLING = 2  # enough for feathered edges and for the long edges of large shapes
_LARGE_AREA = 3_000  # pixels
_STEPS = 4  # curve points per control point


_T = np.arange(_STEPS) / _STEPS
_CATMULL_ROM = [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, _T**3 - _T**2]
_BASIS: Array = (0.5 * np.stack(_CATMULL_ROM, axis=1)).astype(np.float32)
_ANGLE = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE: Array = np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], axis=1).astype(np.float32)


def _through(control: Array) -> Array:
    """Samples the segments between control[1] ... control[-2]: [N + 3, D] -> [N * _STEPS, D]."""
    windows = np.stack([control[:-3], control[1:-2], control[2:-1], control[3:]], axis=1)
    return (_BASIS @ windows).reshape(-1, control.shape[1])


@lru_cache
def _weights(count: int, closed: bool) -> Array:
    """A curve is linear in its control points: the matrix that takes so many of them to its points."""
    unit = np.eye(count, dtype=np.float32)
    if closed:
        return _through(np.concatenate([unit[-1:], unit, unit[:2]]))
    return np.concatenate([_through(np.concatenate([unit[:1], unit, unit[-1:]])), unit[-1:]])


def curve(points: npt.ArrayLike, closed: bool = False) -> Array:
    """Smooth path through control points (Catmull-Rom), both ends included: [N, 2] -> [4 (N - 1) + 1, 2].

    A closed one is an outline: [N, 2] -> [4 N, 2].
    """
    control = np.asarray(points, np.float32)
    return _weights(len(control), closed) @ control


def ellipse(centre: Point, radii: Point) -> Array:
    """Outline of an axis-aligned ellipse: [24, 2]."""
    return _CIRCLE * np.array(radii, np.float32) + np.array(centre, np.float32)


def symmetric_curve(top: float, right: Sequence[Point], bottom: float | None = None, shift: float = 0.0) -> Array:
    """Smooth outline that is its own mirror image, then shifted along x.

    It begins at the height `top` on the axis and goes on through the control points of the right half, the height
    `bottom` on the axis if there is one, and the left half.
    """
    axis = [] if bottom is None else [(0.0, bottom)]
    points = np.array([(0.0, top), *right, *axis, *((-x, y) for x, y in reversed(right))], np.float32)
    points[:, 0] += shift
    return curve(points, closed=True)


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


@dataclass(frozen=True)
class Mask:
    """Coverage by a shape: `alpha` 0 ... 1, float32, inside a box of pixels, and nothing outside it."""

    box: _Box
    alpha: Array


class Canvas:
    """RGB float image whose shapes are given in subject coordinates.

    Subject coordinates are pixels before the pose: the origin is drawn at `origin`, x points right, y down.

    Attributes:
        pixels: the picture, float32 [3, H, W] in 0 ... 255.
    """

    def __init__(self, pixels: Array, origin: Point, roll: float = 0.0, scale: float = 1.0) -> None:
        """Draws on `pixels` [3, H, W] in place, with the subject turned by `roll` degrees and scaled."""
        self.pixels = pixels
        height, width = pixels.shape[1:]
        self._tile = Image.new("L", (_SUPERSAMPLING * width, _SUPERSAMPLING * height))  # scratch for masks
        self._pen = ImageDraw.Draw(self._tile)
        self._everywhere = slice(0, height), slice(0, width)
        self._turned, self._tilted = scale * cos(radians(roll)), scale * sin(radians(roll))
        self._matrix = np.array([[self._turned, self._tilted], [-self._tilted, self._turned]], np.float32)  # of rows
        self._origin = origin
        self._scale = scale
        self._across: Array = np.arange(width, dtype=np.float32) + (0.5 - origin[0])
        self._down: Array = np.arange(height, dtype=np.float32) + (0.5 - origin[1])

    def fill(
        self,
        outlines: Outlines,
        colour: Colour,
        *,
        opacity: float = 1.0,
        feather: float = 0.0,
        light: Light | None = None,
        inside: Mask | None = None,
    ) -> None:
        """Blends a colour, RGB in 0 ... 255, into one or several outlines, each float32 [N, 2] in subject coordinates.

        The edge is softened by `feather` pixels; nothing is painted that is not `inside`.
        """
        self.paint(self.mask(outlines, feather, inside), colour, opacity=opacity, light=light)

    def paint(self, mask: Mask, colour: Colour, *, opacity: float = 1.0, light: Light | None = None) -> None:
        """Blends a colour into what a mask covers."""
        paint = _planes(colour)
        if light is not None:
            paint = paint * light(*self._coordinates(mask.box))
        region = self.pixels[(..., *mask.box)]
        region += (paint - region) * (mask.alpha * np.float32(opacity))

    def mask(self, outlines: Outlines, feather: float = 0.0, inside: Mask | None = None) -> Mask:
        """What outlines cover, each float32 [N, 2], of what another mask covers."""
        parts = outlines if isinstance(outlines, list) else [outlines]
        points = np.concatenate(parts) @ self._matrix
        points += self._origin
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        margin = 1 + 2 * feather
        box = self._box(left - margin, top - margin, right + margin, bottom + margin, inside)
        rows, columns = box
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not height or not width:
            return Mask(box, np.zeros((height, width), np.float32))
        soft = feather > 0 or height * width > _LARGE_AREA
        zoom = _SOFT_SUPERSAMPLING if soft else _SUPERSAMPLING
        self._pen.rectangle((0, 0, width * zoom, height * zoom), fill=0)
        # Pillow's integer coordinates name pixel centres, ours pixel corners.
        corner = np.array([columns.start, rows.start], np.float32)
        corners = np.cumsum([len(part) for part in parts])[:-1]
        for outline in np.split((points - corner) * zoom - 0.5, corners):
            self._pen.polygon(outline.ravel().tolist(), fill=255)
        tile = self._tile.reduce(zoom, box=(0, 0, width * zoom, height * zoom))
        if feather:
            tile = tile.filter(ImageFilter.BoxBlur(feather))
        coverage = np.frombuffer(tile.tobytes(), np.uint8).reshape(height, width)
        return _clipped(box, coverage * np.float32(1 / 255), inside)

    def glow(self, centre: Point, radii: Point, colour: Colour, opacity: float, inside: Mask | None = None) -> None:
        """Blends a colour with gaussian opacity: `radii` are the standard deviations in x and y."""
        self.paint(self._gaussian(centre, radii, opacity, inside), colour)

    def shade(self, centre: Point, radii: Point, tint: Colour, inside: Mask | None = None) -> None:
        """Multiplies the picture by `tint` (1 leaves a channel as it is) with gaussian strength."""
        spot = self._gaussian(centre, radii, 1.0, inside)
        self.pixels[(..., *spot.box)] *= spot.alpha * (_planes(tint) - 1) + 1

    def _box(self, left: float, top: float, right: float, bottom: float, inside: Mask | None) -> _Box:
        """The pixels of the picture, or of a mask's box, that a rectangle touches; empty slices where none."""
        rows, columns = self._everywhere if inside is None else inside.box
        return _overlap(rows, floor(top), ceil(bottom)), _overlap(columns, floor(left), ceil(right))

    def _coordinates(self, box: _Box) -> tuple[Array, Array]:
        """Subject coordinates of the pixels in a box: x and y, float32 [H, W] each."""
        down, across = self._down[box[0], None], self._across[box[1]]
        turned, tilted = self._turned / self._scale**2, self._tilted / self._scale**2  # the inverse pose
        return across * turned + down * tilted, down * turned - across * tilted

    def _gaussian(self, centre: Point, radii: Point, height: float, inside: Mask | None) -> Mask:
        # Relative to the origin, as the coordinates of pixels are.
        x = centre[0] * self._turned - centre[1] * self._tilted
        y = centre[0] * self._tilted + centre[1] * self._turned
        left, top = self._origin[0] + x, self._origin[1] + y
        wide, tall = radii[0] * self._scale, radii[1] * self._scale
        box = self._box(left - 3 * wide, top - 3 * tall, left + 3 * wide, top + 3 * tall, inside)
        down = (self._down[box[0]] - y) / tall
        across = (self._across[box[1]] - x) / wide
        column: Array = np.exp(-0.5 * down * down) * np.float32(height)
        return _clipped(box, column[:, None] * np.exp(-0.5 * across * across), inside)


def _planes(colour: Colour) -> Array:
    return np.array(colour, np.float32)[:, None, None]


def _overlap(extent: slice, start: int, stop: int) -> slice:
    first = max(start, extent.start)
    return slice(first, max(first, min(stop, extent.stop)))


def _clipped(box: _Box, alpha: Array, inside: Mask | None) -> Mask:
    """A mask of what is covered by a shape, and by another mask whose box contains the shape's."""
    if inside is not None:
        rows, columns = box
        first_row, first_column = inside.box[0].start, inside.box[1].start
        alpha *= inside.alpha[
            rows.start - first_row : rows.stop - first_row, columns.start - first_column : columns.stop - first_column
        ]
    return Mask(box, alpha)
