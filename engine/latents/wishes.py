"""What faces are to have and to lack. Pure numpy, for drawn ones the same to the last bit on every machine.

Shapes: N latents of dimension D.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.arrays import Doubles, Floats
from engine.errors import InvalidField, InvalidRequest
from engine.latents.directions import Directions

# Directions aren't orthogonal: where one wish moves a latent, another may move it back, each time by less. What so many
# rounds don't settle is a contradiction.
_ROUNDS = 64
_SETTLED = 1e-6
_NEAR_ENOUGH = 0.01  # of a step of strength 1; float32 has to hold it


class _Wish(NamedTuple):
    name: str
    vector: Doubles
    square: float
    side: float
    sign: int
    way: Doubles

    def lack(self, latents: Doubles) -> Doubles:
        """By how many vectors each latent falls short of the side, [N].

        Not a matrix product: how BLAS rounds depends on the machine, and on how many rows there are.
        """
        along = np.cumsum(latents * self.vector, axis=1)[:, -1] / self.square
        return np.maximum(self.sign * (self.side - along), 0)


@dataclass(frozen=True)
class Wishes:
    """Sides of attributes' directions that latents are to lie on."""

    wishes: tuple[_Wish, ...] = ()

    @classmethod
    def of(
        cls, directions: Directions, having: Sequence[str], lacking: Sequence[str], keep: Sequence[str] = ()
    ) -> "Wishes":
        """Makes wishes of names, along directions beside which nothing of what is kept changes.

        Latents are to have at least as much of `having` as training images with it have on average, and at most as much
        of `lacking` as those without.

        Raises:
            InvalidRequest: When an attribute is to be had and lacked, or kept, nothing is left of its direction beside
                what is kept, or nobody knows where its sides are.
            UnknownAttribute: When this model has no direction of a name.
        """
        if not (having or lacking):
            return cls()
        if both := set(having) & set(lacking):
            raise InvalidRequest(f"{min(both)!r} is in having and in lacking; take it out of one of them", "lacking")
        wished = {name: (f"having[{index}]", 1) for index, name in enumerate(having)}
        wished |= {name: (f"lacking[{index}]", -1) for index, name in enumerate(lacking)}
        return cls(tuple(_wish(directions, name, *how, keep) for name, how in wished.items()))

    def __len__(self) -> int:
        return len(self.wishes)

    def grant(self, latents: Floats) -> Floats:
        """Moves the latents [N, D] that are on another side along the directions to the one that is wished.

        What becomes of a latent doesn't depend on the others.

        Raises:
            InvalidRequest: When no place has all that is wished.
        """
        if not self.wishes:
            return latents
        moved = latents.astype(np.float64)
        for _ in range(_ROUNDS):
            settled = True
            for wish in self.wishes:
                lack = wish.lack(moved)
                lack[lack <= _SETTLED] = 0
                settled &= not lack.any()
                moved += (wish.sign * lack)[:, None] * wish.way
            if settled:
                break
        granted = moved.astype(np.float32)
        if not all((wish.lack(granted.astype(np.float64)) < _NEAR_ENOUGH).all() for wish in self.wishes):
            names = ", ".join(wish.name for wish in self.wishes)
            raise InvalidRequest(f"no face is found with all that is wished of {names}; wish for fewer", "having")
        return granted


def can_be_wished(directions: Directions, name: str) -> bool:
    """Whether `Wishes.of` takes an attribute: its direction has a length, and two sides that are known."""
    return directions.sides[directions.names.index(name)] is not None and bool(directions[name].any())


def _wish(directions: Directions, name: str, field: str, sign: int, keep: Sequence[str]) -> _Wish:
    vector = directions.named(name, field).astype(np.float64)
    sides = directions.sides[directions.names.index(name)]
    if sides is None or not can_be_wished(directions, name):
        raise InvalidField(
            field,
            f": where faces with and without {name!r} lie is not known to this bundle, so it can't be wished; compute "
            "the run's directions again (python -m trainer directions) and export it again",
        )
    square = float(np.cumsum(vector**2)[-1])
    way = directions.beside(name, keep, field)
    if keep:  # as far along the direction with every step as the direction itself
        way = way * square / (way @ way)
    return _Wish(name, vector, square, sides[sign > 0], sign, way)
