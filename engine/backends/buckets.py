"""Batch buckets: the few sizes that batches are computed in, where each size has a cost of its own.

A batch of n images runs in the next bucket (1, 2, 4 ... max). Rows of a bucket beyond n hold leftovers, whose results
nobody reads.
"""

from collections.abc import Callable

import numpy as np

from engine.arrays import Array


def bucket_sizes(largest: int) -> list[int]:
    """1, 2, 4 ... and `largest`."""
    return [*(2**power for power in range((largest - 1).bit_length())), largest]


def in_parts(run: Callable[..., list[Array]], largest: int, *batches: Array) -> list[Array]:
    """Computes batches [N, ...], one for each input, by a function of at most `largest` rows; in parts beyond."""
    starts = range(0, max(len(batches[0]), 1), largest)
    parts = [run(*(batch[start : start + largest] for batch in batches)) for start in starts]
    return parts[0] if len(parts) == 1 else [np.concatenate(results) for results in zip(*parts, strict=True)]
