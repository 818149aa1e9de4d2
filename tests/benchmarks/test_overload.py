"""Overload, in short, against the tiny bundle."""

import json
from pathlib import Path

import pytest
from scripts import benchmark, require_refused


def test_overload(tiny_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "overload.json"
    # Large requests: with the tiny model, the transport is what small ones would overload.
    large = ("--images", 1024, "--max-queue", 4096, "--times", 1, 3, "--seconds", 0.5)
    result = benchmark("overload", "--bundle", tiny_bundle, *large, "--json", record)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(record.read_text())
    assert figures["capacity"]["images_per_s"] > 0
    assert [offer["times"] for offer in figures["offers"]] == [1.0, 3.0]
    for offer in figures["offers"]:
        assert offer["accepted"] > 0
        assert offer["others"] == {}
        assert offer["retries_told"] == offer["refused"]
    assert all(figures["checks"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-queue", "16"), "--max-queue 16: must hold two requests of 16 images at least"),
        (("--times", "0"), "--times 0.0: must be above 0"),
        (("--json", "/nowhere/a.json"), "--json /nowhere/a.json: there is no folder /nowhere"),
    ],
)
def test_bad_input(tiny_bundle: Path, arguments: tuple[str, str], message: str) -> None:
    require_refused(benchmark("overload", "--bundle", tiny_bundle, *arguments), message)
