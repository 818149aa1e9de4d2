"""Latencies, rates and tables."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from script import write_json
from serving.bench import Row
from serving.figures import Calls, markdown
from serving.requests import Case


def test_percentiles_are_of_all_calls() -> None:
    calls = Calls.of([(float(number), number / 1000) for number in range(1, 1001)])
    ms = calls.percentiles()
    assert ms["p50"] == pytest.approx(500.5)
    assert ms["p99"] == pytest.approx(990.01)
    assert ms["p99_9"] == pytest.approx(999.001)
    assert ms["max"] == pytest.approx(1000)
    assert all(math.isnan(value) for value in Calls.of([]).percentiles().values())


def test_histograms_hold_every_call_and_add_up() -> None:
    rng = np.random.default_rng(0)
    first, second = (Calls.of([(0.0, taken) for taken in rng.exponential(0.01, 500)]) for _ in range(2))
    assert sum(count for _, count in first.histogram()) == 500
    for bound, _ in first.histogram():
        below = np.count_nonzero(first.latencies * 1e3 <= bound * (1 + 1e-9))
        assert below == sum(count for other, count in first.histogram() if other <= bound)
    together = Calls.of([(0.0, float(taken)) for calls in (first, second) for taken in calls.latencies])
    added = dict(first.histogram())
    for bound, count in second.histogram():
        added[bound] = added.get(bound, 0) + count
    assert dict(together.histogram()) == added


def test_the_rate_leaves_out_the_ends() -> None:
    # Two at a time, each 0.1 s; the last answer hangs for 10 s, when the other slot is idle already.
    pairs = [(slot / 20 + turn / 10, 0.1) for turn in range(50) for slot in range(2)]
    assert Calls.of([*pairs, (5.0, 10.0)]).rate(in_flight=2) == pytest.approx(20, rel=0.02)
    assert Calls.of(pairs).rate() == pytest.approx(20, rel=0.05)
    assert Calls.of([]).rate() == Calls.of([]).rate(4) == 0


def test_tables_and_json(tmp_path: Path) -> None:
    table = markdown([{"name": "a", "ms": 1234.5}, {"name": "longer", "ms": float("nan")}])
    assert table.splitlines() == [
        "|   name |       ms |",
        "|-------:|---------:|",
        "|      a | 1,234.50 |",
        "| longer |        - |",
    ]
    write_json(tmp_path / "a.json", {"nan": float("nan"), "path": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {"nan": None, "path": str(tmp_path)}


CASE = Case("edit", "raw", "unary", 1, 32)
ROW = Row(CASE, None, 9, 100.0, 0.5, 0.6, {"p50": 1.0}, math.nan, 1.0, 1.0, 1.0, 0.1, {}, [(1.0, 9)], (0.5,))


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
