"""Draws requests in a process of its own, while others are sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random

from fuzzing.cases import Case, Facts
from fuzzing.strategies import Calls, mutant

_BATCH = 500
_AHEAD = 2


def cases(bundle: Path, count: int, mutants: int, seed: int) -> Iterator[Case]:
    """So many calls: those that Hypothesis draws, each followed by variants of it with its bytes spoilt.

    Args:
        bundle: What is served.
        count: How many calls.
        mutants: Variants of each.
        seed: The same seed draws the same ones.
    """
    random, left, number = Random(seed), count, seed * 1_000_000
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        drawing = deque(pool.submit(_draw, bundle, number + step) for step in range(_AHEAD))
        while True:
            number += 1
            batch = drawing.popleft().result()
            drawing.append(pool.submit(_draw, bundle, number + _AHEAD))
            for case in batch:
                for one in (case, *(mutant(case, random) for _ in range(mutants))):
                    if left == 0:
                        pool.shutdown(cancel_futures=True)
                        return
                    left -= 1
                    yield one


def _draw(bundle: Path, number: int) -> list[Case]:
    return _calls(bundle).draw(_BATCH, number)


@cache
def _calls(bundle: Path) -> Calls:
    return Calls(Facts.of(bundle))
