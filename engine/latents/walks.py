"""Walks: points of the latent space on the way between two latents. Pure numpy.

Shapes: N pairs of latents of dimension D.
"""

from collections.abc import Callable

import numpy as np

from engine.arrays import Doubles, Floats
from engine.errors import InvalidRequest

# Latents are float32: with less than this between two unit vectors and their being opposite, rounding picks the arc.
_OPPOSITE = 1e-6


def linear(start: Floats, end: Floats, steps: int) -> Floats:
    """Points on the straight lines between pairs of latents, float32 [N, D] each, at equal distances.

    There are `steps` points a pair, at least 2: float32 [N * steps, D], all of the first pair, from start to end, then
    those of the next. Both ends are the given values bit for bit.
    """
    return _between(start, end, steps, _on_line)


def spherical(start: Floats, end: Floats, steps: int, centre: Floats | Doubles | None = None) -> Floats:
    """Points on the arcs around a centre between pairs of latents, at equal angles; otherwise as `linear`.

    The direction from the centre turns by Shoemake's slerp, (sin((1-t)w) u + sin(t w) v) / sin(w) with w the angle
    between the unit vectors u and v, and the distance changes linearly. So points of a Gaussian in many dimensions,
    which all lie at about the same distance from its mean, stay there. A latent that is the centre lies in no
    direction: it takes that of its partner. The centre, [D], may be the mean of what faces are encoded to; None is
    the origin.

    Raises:
        InvalidRequest: When the two latents of a pair are opposite: all arcs are equally short.
    """
    middle = np.zeros(start.shape[1:]) if centre is None else centre.astype(np.float64)
    return _between(start, end, steps, lambda start, end, share: middle + _on_arc(start - middle, end - middle, share))


def _between(start: Floats, end: Floats, steps: int, path: Callable[[Doubles, Doubles, Doubles], Doubles]) -> Floats:
    share = np.linspace(0, 1, steps)[:, None]
    points = path(start[:, None].astype(np.float64), end[:, None].astype(np.float64), share).astype(np.float32)
    points[:, 0], points[:, -1] = start, end
    return points.reshape(len(start) * steps, start.shape[1])


def _on_line(start: Doubles, end: Doubles, share: Doubles) -> Doubles:
    """Starts and ends, [N, 1, D], and shares of the way, [steps, 1], to points, [N, steps, D]."""
    return (1 - share) * start + share * end


def _on_arc(start: Doubles, end: Doubles, share: Doubles) -> Doubles:
    start_length, end_length = (np.linalg.norm(side, axis=2, keepdims=True) for side in (start, end))
    length = _on_line(start_length, end_length, share)
    start, end = start / np.where(start_length > 0, start_length, 1), end / np.where(end_length > 0, end_length, 1)
    start, end = np.where(start_length > 0, start, end), np.where(end_length > 0, end, start)
    apart, together = (np.linalg.norm(sides, axis=2, keepdims=True) for sides in (end - start, end + start))
    opposite = (together < _OPPOSITE) & (length[:, :1] + length[:, -1:] > 0)
    if opposite.any():
        raise InvalidRequest(
            f"pair {int(np.argmax(opposite))}: its two latents are opposite, so that no arc between them is the "
            "shortest; interpolate linearly, or by way of a third latent"
        )
    angle = 2 * np.arctan2(apart, together)  # unlike the arccosine of a product, exact for small angles
    # With no angle to turn by, slerp's factors 0/0 tend to those of the straight line.
    turning = angle > 0
    sine = np.where(turning, np.sin(angle), 1)
    from_start = np.where(turning, np.sin((1 - share) * angle) / sine, 1 - share)
    from_end = np.where(turning, np.sin(share * angle) / sine, share)
    return length * (from_start * start + from_end * end)
