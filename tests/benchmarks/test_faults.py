"""Faults and overload, in short, against the tiny bundle."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def test_faults(tiny_bundle: Path, tmp_path: Path) -> None:
    chosen = ("killed-clients", "deadline-storm", "sigterm", "sighup", "backend-raises", "slow-readers")
    record = tmp_path / "faults.json"
    result = script("faults", "--bundle", tiny_bundle, "--quick", "--scenarios", *chosen, "--json", record)
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads(record.read_text())["results"]
    assert [one["name"] for one in results] == list(chosen)
    for one in results:
        assert one["answered"] > 0
        assert all(one["checks"].values())
        assert f"PASS  {one['name']} (" in result.stdout
    refused = {one["name"]: set(one["refused"]) for one in results}
    assert refused["backend-raises"] == {"INTERNAL"}
    assert refused["sigterm"]
    assert refused["sighup"] == set()


def test_overload(tiny_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "overload.json"
    # Large requests: with the tiny model, the transport is what small ones would overload.
    large = ("--images", 1024, "--max-queue", 4096)
    result = script("overload", "--bundle", tiny_bundle, "--quick", *large, "--json", record)
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
    ("name", "arguments", "message"),
    [
        ("faults", ("--clients", "0"), "--clients 0: must be at least 1"),
        ("faults", ("--settle-s", "-1"), "--settle-s -1.0: must be 0 or more"),
        ("overload", ("--max-queue", "16"), "--max-queue 16: must hold two requests of 16 images at least"),
        ("overload", ("--times", "0"), "--times 0.0: must be above 0"),
        ("overload", ("--json", "/nowhere/a.json"), "--json /nowhere/a.json: there is no folder /nowhere"),
    ],
)
def test_bad_input(tiny_bundle: Path, name: str, arguments: tuple[str, str], message: str) -> None:
    result = script(name, "--bundle", tiny_bundle, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
