"""Timings of backends side by side, with nothing but numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends import Backend, edit
from engine.latents import Directions

OPERATIONS = ("encode", "decode", "edit")
BLOCK_SECONDS = 0.05
"""Length of a side's turn."""
MIN_CALLS = 30
"""Fewest calls that percentiles are taken of."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Timing:
    """What one side took for one operation at one batch size; `side` names it."""

    side: str
    operation: str
    batch_size: int
    calls: int
    p50_ms: float
    p99_ms: float
    images_per_s: float


def measure(
    sides: dict[str, Backend], images: Array, directions: Directions, sizes: Sequence[int], seconds: float
) -> list[Timing]:
    """Times every operation at every batch size, all sides in turn, each for so many seconds."""
    step = directions.move([(name, 1.0) for name in directions.names[:1]]).step
    shape = (max(sizes), directions.latent_dim)
    latents = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    images = np.resize(images, (max(sizes), *images.shape[1:]))

    def call(side: Backend, operation: str, size: int) -> object:
        if operation == "encode":
            return side.encode(images[:size])
        if operation == "decode":
            return side.decode(latents[:size])
        return edit(side, images[:size], np.tile(step, (size, 1)))

    timings = []
    for size in sizes:
        for operation in OPERATIONS:
            calls = {name: partial(call, side, operation, size) for name, side in sides.items()}
            taken = take_turns(calls, seconds)
            timings += [_timing(name, operation, size, durations) for name, durations in taken.items()]
    return timings


def take_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Durations of calls made in turns, in blocks, until each was timed for `seconds` and `MIN_CALLS` times."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    while any(sum(durations) < seconds or len(durations) < MIN_CALLS for durations in taken.values()):
        for name, call in calls.items():
            call()
            until = time.perf_counter() + BLOCK_SECONDS
            while (start := time.perf_counter()) < until:
                call()
                taken[name].append(time.perf_counter() - start)
    return taken


def _timing(side: str, operation: str, size: int, durations: Sequence[float]) -> Timing:
    p50, p99 = np.percentile(durations, [50, 99]) * 1e3
    rate = size * len(durations) / sum(durations)
    return Timing(side, operation, size, len(durations), float(p50), float(p99), rate)


def table(timings: Sequence[Timing]) -> list[str]:
    """A table: a row for each batch size and operation, a column for each side."""
    sides = list(dict.fromkeys(timing.side for timing in timings))
    found = {(timing.batch_size, timing.operation, timing.side): timing for timing in timings}
    lines = [f"| batch | | {' | '.join(sides)} |", f"|---|---|{'---|' * len(sides)}"]
    for size in sorted({timing.batch_size for timing in timings}):
        for operation in OPERATIONS:
            cells = [_cell(found.get((size, operation, side))) for side in sides]
            lines.append(f"| {size} | {operation} | {' | '.join(cells)} |")
    return lines


def _cell(timing: Timing | None) -> str:
    return f"{timing.p50_ms:.3f}, {timing.p99_ms:.3f}, {timing.images_per_s:,.0f}" if timing else "-"
