"""The load generator against a real server of the tiny bundle."""

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import reseal
from scripts import Result, benchmark, require_refused
from servers import ServerProcess
from tiny_model import ATTRIBUTES, MAX_BATCH_SIZE, save_directions

from engine.latents import Directions

PERCENTILES = ["p50", "p90", "p99", "p99_9", "max"]


@pytest.fixture
def load(script: Callable[..., Result], server: ServerProcess) -> Callable[..., Result]:
    return lambda *arguments: script("load", "--target", server.target, *arguments)


def check_row(row: dict[str, Any]) -> None:
    latency = [row["latency_ms"][name] for name in PERCENTILES]
    assert latency == sorted(latency)
    assert latency[0] > 0
    assert sum(count for _, count in row["histogram_ms"]) == row["requests"] > 0
    assert row["images_per_s"] > 0
    assert row["failures"] == {}
    assert row["rss_mib"] > 10
    assert row["client_cores"] > 0


def test_every_kind_of_load(server: ServerProcess, tiny_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "load.json"
    operations = ("encode", "edit", "decode")
    chosen = ("--in-flight", 1, 4, "--images", 1, 8, "--arrivals", 0.5, "--seconds", 0.1)
    what = ("--target", server.target, "--bundle", tiny_bundle, "--infer-operations", *operations)
    result = benchmark("load", *what, *chosen, "--json", record)
    assert result.returncode == 0, result.stderr
    figures = json.loads(record.read_text())
    cases = [row["case"] for row in figures["closed_loop"]]
    unary = [(form, name) for form in ("raw", "jpeg") for name in operations]
    inferred = [("raw", name) for name in operations]
    streams = [(form, name) for form in ("raw", "jpeg") for name in ("edit", "slide")]
    for transport, kinds in (("unary", unary), ("infer", inferred), ("stream", streams)):
        expected = [(*kind, images, flight) for kind in kinds for images in (1, 8) for flight in (1, 4)]
        found = [case for case in cases if case["transport"] == transport]
        assert [tuple(case[key] for key in ("form", "operation", "images", "in_flight")) for case in found] == expected
    for row in figures["closed_loop"]:
        check_row(row)
        assert [row["share"]] == row["shares"]
        assert row["share"] > 0
        assert row["cpu_share"] > 0
    assert len(figures["open_loop"]) == 12
    for row in figures["open_loop"]:
        check_row(row)
        assert row["arrivals_per_s"] > 0
    assert figures["server"]["max_batch_size"] == MAX_BATCH_SIZE


def test_without_a_bundle_there_are_no_shares(load: Callable[..., Result], tmp_path: Path) -> None:
    record = tmp_path / "load.json"
    chosen = ("--operations", "decode", "--stream-operations", "--forms", "raw", "--images", 1, 8)
    result = load(*chosen, "--in-flight", 1, 4, "--seconds", 0.1, "--rounds", 3, "--json", record)
    assert result.returncode == 0, result.stderr
    rows = json.loads(record.read_text())["closed_loop"]
    assert [row["case"]["operation"] for row in rows] == ["decode"] * 4
    for row in rows:
        assert row["shares"] == [None] * 3
        assert row["share"] is row["cpu_share"] is None


def test_cases_beyond_the_servers_limits_are_left_out(load: Callable[..., Result], tmp_path: Path) -> None:
    record = tmp_path / "load.json"
    chosen = ("--operations", "decode", "--stream-operations", "--forms", "raw", "--images", 1, 512, "--arrivals", 0.5)
    result = load(*chosen, "--in-flight", 1, 64, "--seconds", 0.1, "--json", record)
    assert result.returncode == 0, result.stderr
    assert "1 of 4 cases are left out: more than 4096 images under way" in result.stderr
    cases = [row["case"] for row in json.loads(record.read_text())["closed_loop"]]
    assert [(case["images"], case["in_flight"]) for case in cases] == [(1, 1), (1, 64), (512, 1)]


def test_another_bundle_than_the_servers_is_noticed(
    load: Callable[..., Result], tiny_bundle: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    path = other / "directions.safetensors"
    known = Directions.load(path)
    assert known.names == ATTRIBUTES
    save_directions(replace(known, vectors=known.vectors * 3), path)
    reseal(other)
    result = load("--bundle", other, "--operations", "edit", "--forms", "raw")
    assert result.returncode == 2
    assert "edit raw unary of 1: the answer is off by" in result.stderr
    assert "is --bundle the one that the server serves?" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--in-flight", "0"), "--in-flight 0: must be above 0"),
        (("--rounds", "0"), "--rounds 0: must be above 0"),
        (("--seconds", "0"), "--seconds 0.0: must be above 0"),
        (("--arrivals", "-1"), "--arrivals -1.0: must be above 0"),
        (("--json", "/nowhere/load.json"), "--json /nowhere/load.json: there is no folder /nowhere"),
        (("--bundle", "nowhere"), "no bundle folder at nowhere"),
    ],
)
def test_bad_input(load: Callable[..., Result], arguments: tuple[str, str], message: str) -> None:
    require_refused(load(*arguments), message)


def test_no_server_is_one_line(script: Callable[..., Result]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
        require_refused(script("load", "--target", target), f"no server answers at {target} (UNAVAILABLE)")
