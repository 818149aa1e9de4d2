"""New points of the latent space: on the way between two latents, and drawn from a Gaussian. Pure numpy.

Shapes: N latents or pairs of dimension D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from engine.errors import BundleError, InvalidRequest

Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]

# Latents are float32: with less than this between two unit vectors and their being opposite, rounding picks the arc.
_OPPOSITE = 1e-6

_BLOCK = 128  # latents that are worked on at once: sums and products of a block stay in the processor's cache


def linear(start: Floats, end: Floats, steps: int) -> Floats:
    """Points on the straight lines between pairs of latents, at equal distances.

    Args:
        start: float32 [N, D].
        end: float32 [N, D].
        steps: Points per pair, both ends among them; at least 2.

    Returns:
        float32 [N * steps, D]: all points of the first pair, from start to end, then those of the next. Both ends
        are the given values bit for bit.

    Raises:
        InvalidRequest: When steps are too few, or the pairs don't match.
    """
    return _between(start, end, steps, _on_line)


def spherical(start: Floats, end: Floats, steps: int) -> Floats:
    """Points on the arcs between pairs of latents, at equal angles; otherwise as `linear`.

    The direction turns by Shoemake's slerp, (sin((1-t)w) u + sin(t w) v) / sin(w) with w the angle between the unit
    vectors u and v, and the length changes linearly. So points of a Gaussian in many dimensions, which all lie at
    about the same distance from its centre, stay there. A zero vector has no direction: it takes that of its partner.

    Raises:
        InvalidRequest: As `linear`, and when the two latents of a pair are opposite: all arcs are equally short.
    """
    return _between(start, end, steps, _on_arc)


def _between(
    start: Floats, end: Floats, steps: int, path: Callable[[_Doubles, _Doubles, _Doubles], _Doubles]
) -> Floats:
    if steps < 2:
        raise InvalidRequest(f"steps must be at least 2 (both ends), not {steps}")
    if start.ndim != 2 or start.shape != end.shape:
        raise InvalidRequest(
            f"start and end must be pairs of latents, [N, D] each, not {list(start.shape)} and {list(end.shape)}"
        )
    share = np.linspace(0, 1, steps)[:, None]
    points = path(start[:, None].astype(np.float64), end[:, None].astype(np.float64), share).astype(np.float32)
    points[:, 0], points[:, -1] = start, end
    return points.reshape(len(start) * steps, start.shape[1])


def _on_line(start: _Doubles, end: _Doubles, share: _Doubles) -> _Doubles:
    """Starts and ends, [N, 1, D], and shares of the way, [steps, 1], to points, [N, steps, D]."""
    points: _Doubles = (1 - share) * start + share * end
    return points


def _on_arc(start: _Doubles, end: _Doubles, share: _Doubles) -> _Doubles:
    start_length, end_length = (np.linalg.norm(side, axis=2, keepdims=True) for side in (start, end))
    length = _on_line(start_length, end_length, share)
    start, end = _unit(start, start_length), _unit(end, end_length)
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
    points: _Doubles = length * (from_start * start + from_end * end)
    return points


def _unit(vectors: _Doubles, length: _Doubles) -> _Doubles:
    units: _Doubles = vectors / np.where(length > 0, length, 1)
    return units


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of latents: `mean + factor @ noise`, with noise from N(0, I).

    Attributes:
        mean: float32 [D].
        factor: float32 [D, D], a root of the covariance: covariance = factor @ factor.T.

    Raises:
        BundleError: When the parts disagree in shape or aren't finite float32.
    """

    mean: Floats
    factor: Floats

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("factor", self.factor)):
            shape = (self.mean.size,) * (1 if name == "mean" else 2)
            if values.dtype != np.float32 or values.shape != shape:
                raise BundleError(
                    f"{name} of a Gaussian must be float32 {list(shape)}, not {values.dtype} {list(values.shape)}"
                )
            if not np.isfinite(values).all():
                raise BundleError(f"{name} of a Gaussian has values that are not finite")

    @classmethod
    def standard(cls, latent_dim: int) -> Gaussian:
        """N(0, I), which a VAE's latents are trained towards."""
        return cls(np.zeros(latent_dim, np.float32), np.eye(latent_dim, dtype=np.float32))

    @property
    def latent_dim(self) -> int:
        """Dimension D of the latent space."""
        return len(self.mean)

    def draw(self, count: int, seed: int, temperature: float = 1.0) -> Floats:
        """Draws latents: the same seed gives the same ones, on every machine.

        The noise is NumPy's Philox stream in float64, row by row, so that the first k of many latents are the k of a
        smaller draw. (NumPy doesn't promise that its stream never changes; a test pins it.)

        Args:
            count: How many.
            seed: Any integer from 0 on.
            temperature: Factor on the noise, from 0 on: below 1 the latents lie closer to the mean, where images are
                more typical and less varied.

        Returns:
            float32 [count, D].

        Raises:
            InvalidRequest: When an argument is out of its range, or the result doesn't fit float32.
        """
        if count < 1:
            raise InvalidRequest(f"count must be at least 1, not {count}")
        if seed < 0:
            raise InvalidRequest(f"seed must be at least 0, not {seed}")
        if not 0 <= temperature < np.inf:
            raise InvalidRequest(f"temperature must be at least 0 and finite, not {temperature:g}")
        noise = np.random.Generator(np.random.Philox(seed)).standard_normal((count, self.latent_dim))
        with np.errstate(over="ignore", invalid="ignore"):
            latents = (self.mean + temperature * self._spread(noise)).astype(np.float32)
        if not np.isfinite(latents).all():
            raise InvalidRequest(
                f"temperature {temperature:g} moves the latents out of float32's range; use a temperature of about 1"
            )
        return latents

    def _spread(self, noise: _Doubles) -> _Doubles:
        """`factor @ row` for each row of the noise, [N, D].

        Not a matrix product: how BLAS rounds depends on the machine, and on how many rows there are. Here every sum
        goes from the factor's first column to its last.
        """
        spread = np.empty_like(noise)
        for start in range(0, len(noise), _BLOCK):
            rows = slice(start, start + _BLOCK)
            given = np.ascontiguousarray(noise[rows].T)  # so that the innermost loop is over latents, which are many
            sums, products = np.zeros_like(given), np.empty_like(given)
            for values, (places, column) in zip(given, self._columns, strict=True):
                sums[places] += np.multiply(column, values, out=products[places])
            spread[rows] = sums.T
        return spread

    @cached_property
    def _columns(self) -> list[tuple[slice, _Doubles]]:
        """The factor's columns, [n, 1], from their first value that isn't 0 to their last, and the places of these.

        The zeros around change no sum, and N(0, I) has hardly anything else.
        """
        columns = []
        for column in self.factor.T.astype(np.float64):
            filled = column.nonzero()[0]
            places = slice(filled[0], filled[-1] + 1) if filled.size else slice(0)
            columns.append((places, np.ascontiguousarray(column[places, None])))
        return columns

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file: tensors `mean` [D] and `factor` [D, D]."""
        tensors = {"mean": np.ascontiguousarray(self.mean), "factor": np.ascontiguousarray(self.factor)}
        Path(path).write_bytes(save(tensors))

    @classmethod
    def load(cls, path: str | Path) -> Gaussian:
        """Reads what `save` wrote.

        Raises:
            BundleError: When the file is missing, truncated, or holds no Gaussian.
        """
        try:
            with safe_open(path, framework="np") as file:
                if missing := {"mean", "factor"} - set(file.keys()):
                    raise BundleError(f"it holds no Gaussian, for it lacks {' and '.join(sorted(missing))}")
                return cls(file.get_tensor("mean"), file.get_tensor("factor"))
        except FileNotFoundError:
            raise BundleError(f"{path} does not exist") from None
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise BundleError(f"{path} can't be read as a Gaussian: {error}") from error
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None
