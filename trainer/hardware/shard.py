"""Which images of a batch one process computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True)
class Shard:
    """Every `size`-th image of a batch, from the `rank`-th on; by default all of them.

    Strided, so that the first images of a batch, those that the feature terms look at, are spread evenly.
    """

    rank: int = 0
    size: int = 1

    def of(self, batch: NDArray[ScalarT]) -> NDArray[ScalarT]:
        """This shard's part of a batch, along the first dimension."""
        return batch[self.rank :: self.size]

    def count(self, images: int) -> int:
        """How many of the first `images` images of a batch are this shard's."""
        return len(range(self.rank, images, self.size))
