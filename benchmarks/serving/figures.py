"""Figures of a run: latencies as percentiles and histogram, throughput, and Markdown tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.arrays import Doubles

_BUCKETS_PER_DECADE = 20


@dataclass(frozen=True)
class Calls:
    """Answered calls."""

    starts: Doubles  # when each one began, or was meant to begin, seconds on any clock, float64 [N]
    latencies: Doubles  # how long its answer took from there, seconds, float64 [N]

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Calls":
        """From pairs of start and latency, in any order."""
        array = np.asarray(sorted(pairs), np.float64).reshape(-1, 2)
        return cls(array[:, 0], array[:, 1])

    def __len__(self) -> int:
        return len(self.starts)

    def rate(self, in_flight: int = 0) -> float:
        """Answers per second, without the first and last `in_flight` of them, when not all slots were busy."""
        ends = np.sort(self.starts + self.latencies)
        if len(ends) < 3 * in_flight + 2:
            span = ends[-1] - self.starts.min() if len(ends) else 0.0
            return len(ends) / float(span) if span > 0 else 0.0
        inner = ends[in_flight : len(ends) - in_flight]
        return (len(inner) - 1) / float(inner[-1] - inner[0])

    def percentiles(self) -> dict[str, float]:
        """Latencies in ms: p50, p90, p99, p99.9 and the largest; exact, of all calls. NaN without any."""
        shares = {"p50": 50, "p90": 90, "p99": 99, "p99_9": 99.9, "max": 100}
        if not len(self):
            return dict.fromkeys(shares, float("nan"))
        return {name: float(np.percentile(self.latencies * 1e3, share)) for name, share in shares.items()}

    def histogram(self) -> list[tuple[float, int]]:
        """Pairs of a bucket's upper bound, ms, and its number of calls; bounds are 12 % apart, empty buckets left out.

        The bounds are the same for every run, so that histograms can be added.
        """
        steps = np.ceil(np.log10(np.maximum(self.latencies * 1e3, 1e-3)) * _BUCKETS_PER_DECADE).astype(int)
        found, counts = np.unique(steps, return_counts=True)
        return [(float(10 ** (step / _BUCKETS_PER_DECADE)), int(n)) for step, n in zip(found, counts, strict=True)]


def _cell(value: object) -> str:
    """A value for a table: floats rounded, None and NaN as a dash."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as a markdown table, padded so that it reads well on a screen too."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *lines[1:]])
