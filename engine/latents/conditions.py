"""Conditions on faces: attributes that they are to have and to lack.

Pure numpy, for drawn faces the same to the last bit on every machine.

A condition is a half-space: all latents on one side of a plane across the attribute's direction. Latents are projected
onto one after the other until all hold, as projections onto convex sets are, but each along the attribute's direction
beside what is kept.

Shapes: N latents of dimension D.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.arrays import Doubles, Floats
from engine.errors import InvalidField, InvalidRequest
from engine.latents.directions import Directions

# Directions aren't orthogonal: where one condition moves a latent, another may move it back, each time by less. What so
# many rounds don't settle is a contradiction.
_ROUNDS = 64
_SETTLED = 1e-6
_NEAR_ENOUGH = 0.01  # of a step of strength 1; float32 has to hold it


class _HalfSpace(NamedTuple):
    name: str  # of the attribute
    vector: Doubles  # its direction, [D]
    square: float  # of the vector's length
    boundary: float  # in lengths of the vector
    sign: int  # 1: the latents beyond the boundary; -1: those before it
    way: Doubles  # along which latents are moved, [D]

    def distance(self, latents: Doubles) -> Doubles:
        """By how many vectors each latent lies outside, [N]; 0 inside.

        Not a matrix product: how BLAS rounds depends on the machine, and on how many rows there are.
        """
        along = np.cumsum(latents * self.vector, axis=1)[:, -1] / self.square
        return np.maximum(self.sign * (self.boundary - along), 0)


class Conditions(tuple[_HalfSpace, ...]):
    """Half-spaces that latents are to lie in."""

    @classmethod
    def of(
        cls, directions: Directions, having: Sequence[str], lacking: Sequence[str], keep: Sequence[str] = ()
    ) -> "Conditions":
        """Makes conditions of names, along directions beside which nothing of what is kept changes.

        Latents are to have at least as much of `having` as training images with it have on average, and at most as much
        of `lacking` as those without.

        Raises:
            InvalidRequest: When an attribute is to be had and lacked, or kept, nothing is left of its direction beside
                what is kept, or nobody knows where its sides are.
            UnknownAttribute: When this model has no direction of a name.
        """
        if both := set(having) & set(lacking):
            raise InvalidRequest(f"{min(both)!r} is in having and in lacking; take it out of one of them", "lacking")
        wanted = {name: (f"having[{index}]", 1) for index, name in enumerate(having)}
        wanted |= {name: (f"lacking[{index}]", -1) for index, name in enumerate(lacking)}
        return cls(_half_space(directions, name, *how, keep) for name, how in wanted.items())

    def project(self, latents: Floats) -> Floats:
        """Moves the latents [N, D] that lie outside into all half-spaces; those that lie inside stay.

        What becomes of a latent doesn't depend on the others.

        Raises:
            InvalidRequest: When no place meets all conditions.
        """
        moved = latents.astype(np.float64)
        for _ in range(_ROUNDS):
            settled = True
            for half_space in self:
                distance = half_space.distance(moved)
                distance[distance <= _SETTLED] = 0
                settled &= not distance.any()
                moved += (half_space.sign * distance)[:, None] * half_space.way
            if settled:
                break
        projected = moved.astype(np.float32)
        if not all((each.distance(projected.astype(np.float64)) < _NEAR_ENOUGH).all() for each in self):
            names = ", ".join(each.name for each in self)
            raise InvalidRequest(f"no face meets the conditions on all of {names}; ask for fewer", "having")
        return projected


def can_condition(directions: Directions, name: str) -> bool:
    """Whether `Conditions.of` takes an attribute: its direction has a length, and two sides that are known."""
    return directions.sides[directions.names.index(name)] is not None and bool(directions[name].any())


def _half_space(directions: Directions, name: str, field: str, sign: int, keep: Sequence[str]) -> _HalfSpace:
    vector = directions.named(name, field).astype(np.float64)
    sides = directions.sides[directions.names.index(name)]
    if sides is None or not can_condition(directions, name):
        raise InvalidField(
            field,
            f": where faces with and without {name!r} lie is not known to this bundle, so there is no condition on it; "
            "compute the run's directions again (python -m trainer directions) and export it again",
        )
    square = float(np.cumsum(vector**2)[-1])
    way = directions.beside(name, keep, field)
    if keep:  # as far along the direction with every step as the direction itself
        way = way * square / (way @ way)
    return _HalfSpace(name, vector, square, sides[sign > 0], sign, way)
