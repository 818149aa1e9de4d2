"""What all backends have in common."""

import os
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from servers import ROOT

from engine.backends import BACKENDS, CUDA, base

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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


@pytest.mark.parametrize("name", BACKENDS)
def test_its_extras_bring_what_a_backend_needs(name: str) -> None:
    row, listed = BACKENDS[name], tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = listed["project"]["optional-dependencies"]
    for device, extra in row.extras.items():
        for each in {extra, f"{extra}-cu13"} & extras.keys():
            needed = {Requirement(line).name for line in extras[each]}
            assert needed & set(row.packages)
            assert device != CUDA or "cuda-bindings" in needed  # by which a proof knows the GPU
