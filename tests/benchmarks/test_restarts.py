"""Rolling restarts, in short, against the tiny bundle."""

import json
from pathlib import Path

from scripts import benchmark, require_refused


def test_restarts_fail_no_call(tiny_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "restarts.json"
    short = ("--restarts", 2, "--clients", 2, "--settle-s", 3)
    result = benchmark("restarts", "--bundle", tiny_bundle, *short, "--json", record)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(record.read_text())
    assert len(figures["end_s"]) == 2
    for calls in figures["calls"].values():
        assert calls["sent"] == calls["answered"] > 0
        assert calls["refused"] == {}
    assert all(figures["checks"].values())


def test_bad_input(tiny_bundle: Path) -> None:
    refused = benchmark("restarts", "--bundle", tiny_bundle, "--restarts", 0)
    require_refused(refused, "--restarts 0: must be above 0")
