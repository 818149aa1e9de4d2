"""What all backends have in common."""

import os
from pathlib import Path

import pytest

from engine.backends import base


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("1600000 100000", 8)],
)
def test_a_container_has_the_cores_that_its_quota_is_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(base, "_QUOTA", tmp_path / "cpu.max")
    assert base.cores() == 8
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert base.cores() == expected
