"""Faults and overload, in short, against the tiny bundle."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts import Result, benchmark, require_refused


def test_faults(tiny_bundle: Path, tmp_path: Path) -> None:
    chosen = ("killed-clients", "deadline-storm", "sigterm", "sighup", "backend-raises", "slow-readers")
    record = tmp_path / "faults.json"
    short = ("--clients", 4, "--settle-s", 0.3, "--scale", 0.1)
    result = benchmark("faults", "--bundle", tiny_bundle, *short, "--scenarios", *chosen, "--json", record)
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


def test_restarts_fail_no_call(tiny_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "faults.json"
    short = ("--clients", 2, "--settle-s", 3, "--scale", 0.2)
    result = benchmark("faults", "--bundle", tiny_bundle, *short, "--scenarios", "restarts", "--json", record)
    assert result.returncode == 0, result.stdout + result.stderr
    (found,) = json.loads(record.read_text())["results"]
    assert found["sent"] == found["answered"] > 0
    assert found["refused"] == {}
    assert {"every call of this project's clients is answered, right", "every server ends with exit code 0"} <= set(
        found["checks"]
    )
    assert all(found["checks"].values())


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
    ("name", "arguments", "message"),
    [
        ("faults", ("--clients", "0"), "--clients 0: must be above 0"),
        ("faults", ("--settle-s", "-1"), "--settle-s -1.0: must be above 0"),
        ("faults", ("--scenarios", "wings"), "--scenarios wings: there are killed-clients, half-sent, "),
        ("overload", ("--max-queue", "16"), "--max-queue 16: must hold two requests of 16 images at least"),
        ("overload", ("--times", "0"), "--times 0.0: must be above 0"),
        ("overload", ("--json", "/nowhere/a.json"), "--json /nowhere/a.json: there is no folder /nowhere"),
    ],
)
def test_bad_input(
    script: Callable[..., Result], tiny_bundle: Path, name: str, arguments: tuple[str, str], message: str
) -> None:
    require_refused(script(name, "--bundle", tiny_bundle, *arguments), message)
