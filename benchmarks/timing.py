"""Timings of backends side by side: all take turns, so that a change of a machine's clock and load meets all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from serving.figures import markdown
from tqdm import tqdm

from engine.arrays import Array
from engine.backends import Backend
from engine.latents import Directions

BLOCK_SECONDS = 0.1
"""Length of a side's turn: long beside a call, short beside changes of a machine's clock and load."""
MIN_CALLS = 20
"""Fewest calls that percentiles are taken of, however slow they are."""


@dataclass(frozen=True)
class Timing:
    """What one side took for one operation at one batch size."""

    side: str
    operation: str  # "encode", "edit" or "decode"
    batch_size: int  # images a call
    calls: int  # that were timed; with fewer than 100, `p99_ms` is little else than the slowest
    images_per_s: float  # images of all timed calls by the time that they took
    mean_ms: float  # duration of a call; likewise the shortest, and percentiles 50, 90 and 99
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def of(cls, side: str, operation: str, batch_size: int, seconds: Sequence[float]) -> "Timing":
        """Sums up the durations of calls."""
        ms = np.asarray(seconds) * 1e3
        figures = [ms.mean(), ms.min(), *np.percentile(ms, [50, 90, 99])]
        return cls(side, operation, batch_size, len(ms), batch_size * 1e3 / float(ms.mean()), *map(float, figures))


def measure(
    sides: Mapping[str, Backend], image_size: int, directions: Directions, sizes: Sequence[int], seconds: float
) -> list[Timing]:
    """Times every operation at every batch size on random images, all sides in turns, `seconds` each.

    Edits move along the first direction, where there is any.
    """
    noise, largest = np.random.default_rng(0), max(sizes)
    images = noise.integers(0, 256, (largest, image_size, image_size, 3), np.uint8)
    latents = noise.standard_normal((largest, directions.latent_dim), np.float32)
    steps = np.resize([*directions.vectors[:1], np.zeros(directions.latent_dim)][0], latents.shape).astype(np.float32)
    arguments: dict[str, tuple[Array, ...]] = {"encode": (images,), "edit": (images, steps), "decode": (latents,)}
    timings = []
    cases = list(product(sizes, arguments))
    for size, operation in tqdm(cases, desc="measuring", unit="case", leave=False, disable=None):
        batch = [array[:size] for array in arguments[operation]]
        calls = {name: partial(getattr(side, operation), *batch) for name, side in sides.items()}
        taken = take_turns(calls, seconds)
        timings += [Timing.of(name, operation, size, durations) for name, durations in taken.items()]
    return timings


def take_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Durations, seconds, of calls made in turns, in blocks, until each was timed so long and `MIN_CALLS` times."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    while any(sum(durations) < seconds or len(durations) < MIN_CALLS for durations in taken.values()):
        for name, call in calls.items():
            call()  # not timed: the other side's data fills the caches, and its threads may still be spinning
            until = time.perf_counter() + BLOCK_SECONDS
            while (start := time.perf_counter()) < until:
                call()
                taken[name].append(time.perf_counter() - start)
    return taken


def by_case(timings: Sequence[Timing]) -> dict[tuple[int, str], dict[str, Timing]]:
    """Timings by batch size and operation, and then by side."""
    cases: dict[tuple[int, str], dict[str, Timing]] = {}
    for timing in timings:
        cases.setdefault((timing.batch_size, timing.operation), {})[timing.side] = timing
    return cases


def table(timings: Sequence[Timing]) -> str:
    """A line for each side of each case; the ratio compares throughput with the case's last side."""
    rows = []
    for (size, operation), sides in sorted(by_case(timings).items(), key=lambda case: case[0][0]):
        *_, last = sides.values()
        rows += [
            {
                "batch": size,
                "operation": operation,
                "p50 ms": timing.p50_ms,
                "p99 ms": timing.p99_ms,
                "images/s": round(timing.images_per_s),
                "ratio": f"{timing.images_per_s / last.images_per_s:.2f}x",
                "side": name,
            }
            for name, timing in sides.items()
        ]
    return markdown(rows)
