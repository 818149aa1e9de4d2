"""The row that stands for several rounds of a case."""

from dataclasses import replace

import pytest
from serving.bench import Row
from serving.bodies import Case

CASE = Case("edit", "raw", "unary", 1, 32)
ROW = Row(CASE, "python", None, 9, 100.0, 0.5, 1.0, 0.6, {"p50": 1.0}, None, 1.0, 1.0, 1.0, 0.1, {}, [], (0.5,))


@pytest.mark.parametrize(("shares", "median"), [([0.5], 0.5), ([0.9, 0.1, 0.6], 0.6), ([0.4, 0.9, 0.1, 0.6], 0.4)])
def test_the_median_share_counts_and_all_failures(shares: list[float], median: float) -> None:
    rows = [replace(ROW, share=share, failures={"LOST": 1}) for share in shares]
    found = Row.median(rows)
    assert (found.share, found.shares) == (median, tuple(shares))
    assert found.failures == {"LOST": len(shares)}


def test_without_shares_the_median_rate_counts() -> None:
    rows = [replace(ROW, share=None, images_per_s=rate) for rate in (300.0, 100.0, 200.0)]
    found = Row.median(rows)
    assert (found.images_per_s, found.shares) == (200.0, (None,) * 3)
