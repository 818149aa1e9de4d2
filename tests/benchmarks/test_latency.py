import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builds import plain, silent
from bundles import reseal, spoil
from runs import write_run
from scripts import Result, require_refused

from export.build_engines import build


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("latency") / "run", samples=3)


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    return make(run, "bundle")


@pytest.fixture(scope="module")
def rewritten(run: Path) -> Path:
    return make(run, "rewritten", encoder="product", decoder="phases")


def make(run: Path, name: str, **forms: Any) -> Path:
    return build(plain(run=run, out=run.parent / name, max_batch=3, **forms), silent)


@pytest.fixture
def latency(script: Callable[..., Result]) -> Callable[..., Result]:
    return lambda *arguments: script("latency", *arguments, "--seconds", 0.01)


def check_timing(timing: dict[str, Any], batch_size: int) -> None:
    assert timing["calls"] >= 20
    assert 0 < timing["min_ms"] <= timing["p50_ms"] <= timing["p90_ms"] <= timing["p99_ms"]
    assert timing["images_per_s"] == pytest.approx(batch_size * 1000 / timing["mean_ms"])


ENGINE, PORTABLE = "bundle: onnxruntime fp32 on cpu", "portable: onnxruntime fp32"
DEFAULTS, PYTORCH = "ONNX Runtime's defaults", "PyTorch eager FP32"


def test_beside_pytorch(latency: Callable[..., Result], run: Path, bundle: Path, tmp_path: Path) -> None:
    result = latency("--bundle", bundle, "--run", run, "--threads", 1, "--json", tmp_path / "latency.json")
    assert result.returncode == 0, result.stderr
    assert "decode of N(0, I)" in result.stdout
    figures = json.loads((tmp_path / "latency.json").read_text())
    cases = [(case["batch_size"], case["operation"]) for case in figures["results"]]
    assert cases == [(size, name) for size in (1, 2, 3) for name in ("encode", "edit", "decode")]
    for case in figures["results"]:
        assert list(case["timings"]) == [ENGINE, PORTABLE, DEFAULTS, PYTORCH]
        for timing in case["timings"].values():
            check_timing(timing, case["batch_size"])
    assert figures["machine"]["threads"] == 1
    assert {"cpu", "cores", "load", "system", "date", "versions"} <= set(figures["machine"])
    assert figures["bundles"][ENGINE]["backend"] == "onnxruntime"
    assert figures["parity_measured"] == "now"
    assert figures["bundles"][ENGINE]["parity"]["samples"] == 3
    lines = result.stdout.splitlines()
    for side in (ENGINE, PORTABLE, DEFAULTS, PYTORCH):
        assert sum(line.startswith("|") and line.split("|")[-2].strip() == side for line in lines) == 9


def test_without_a_run_pytorch_is_left_out(latency: Callable[..., Result], bundle: Path, tmp_path: Path) -> None:
    arguments = ("--batch-sizes", 2, "--threads", 1, "--json", tmp_path / "latency.json", "--no-portable")
    result = latency("--bundle", bundle, *arguments)
    assert result.returncode == 0, result.stderr
    assert "PyTorch was not measured (give --run); parity is quoted from the export" in result.stdout
    figures = json.loads((tmp_path / "latency.json").read_text())
    assert [case["batch_size"] for case in figures["results"]] == [2, 2, 2]
    assert all(list(case["timings"]) == [ENGINE] for case in figures["results"])
    assert figures["parity_measured"] == "at export"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert figures["bundles"][ENGINE]["parity"] == manifest["parity"]


def test_several_bundles_side_by_side(
    latency: Callable[..., Result], run: Path, bundle: Path, rewritten: Path, tmp_path: Path
) -> None:
    arguments = ("--run", run, "--batch-sizes", 1, "--threads", 1, "--json", tmp_path / "latency.json")
    result = latency("--bundle", bundle, rewritten, *arguments)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "latency.json").read_text())
    sides = [ENGINE, "rewritten: onnxruntime fp32 on cpu", PORTABLE, DEFAULTS, PYTORCH]
    assert all(list(case["timings"]) == sides for case in figures["results"])
    assert list(figures["bundles"]) == sides[:2]


def test_engines_beyond_their_tolerance_are_exit_code_1(
    latency: Callable[..., Result], run: Path, bundle: Path, tmp_path: Path
) -> None:
    wrong = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    spoil(wrong / "decoder.onnx")
    reseal(wrong)  # only a new measurement of parity can notice
    arguments = ("--run", run, "--batch-sizes", 1, "--threads", 1, "--json", tmp_path / "latency.json")
    result = latency("--bundle", wrong, *arguments)
    assert result.returncode == 1
    message = "error: stage portable (encoder.onnx and decoder.onnx by onnxruntime in fp32 on cpu) differs from PyTorch"
    assert result.stderr.startswith(message)
    assert "FAIL" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-sizes", "4"), "--batch-sizes 4: these bundles take 1 to 3 images"),
        (("--json", "/nowhere/latency.json"), "--json /nowhere/latency.json: there is no folder /nowhere"),
        (("--compiled",), "--compiled: needs the model; give --run RUN"),
        (("--threads", "0"), "--threads 0: must be above 0"),
        (("--run", "nowhere"), "nowhere is not a run folder"),
        (("--bundle", "nowhere"), "no bundle folder at nowhere"),
    ],
)
def test_bad_input(latency: Callable[..., Result], bundle: Path, arguments: tuple[str, str], message: str) -> None:
    require_refused(latency("--bundle", bundle, *arguments), message)


def test_bundle_of_another_run_is_refused(latency: Callable[..., Result], bundle: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", image_size=32)
    result = latency("--bundle", bundle, "--run", other)
    assert result.returncode == 2
    assert "was built from another model" in result.stderr
