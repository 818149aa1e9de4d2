"""The GPU benchmark from a bundle to its report, over the stand-in of tests/gpu_stand_in.py: real graphs, no device."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_stand_in
import pytest
from builds import plain, silent
from runs import write_run

from engine.backends.tensorrt import TensorRtBackend
from engine.bundle import Bundle
from export.build_engines import build

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The benchmark as a module, with turns as short as can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        speed = importlib.import_module("timing")
        patch.setattr(speed, "BLOCK_SECONDS", 0.001)
        patch.setattr(speed, "MIN_CALLS", 1)
        yield importlib.import_module("gpu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    config = plain(run=write_run(folder / "run"), out=folder / "bundle", max_batch=6, all_forms=True)
    return build(config, silent)


def run(gpu: Any, bundle: Path, folder: Path, *more: str) -> int:
    options = ["--out", folder / "made", "--report", folder / "report.md", "--seconds", "0.001"]
    code: int = gpu.main(["run", "--bundle", str(bundle), *map(str, options), *more])
    return code


@pytest.mark.parametrize("version", ["8.6.0", "11.1.0"])
def test_a_report_of_builds_parity_and_speed(
    gpu: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    gpu_stand_in.install(monkeypatch, version)
    figures = {"side": "PyTorch", "operation": "edit", "batch_size": 1, "calls": 30, "images_per_s": 1e3}
    times = {"mean_ms": 1.0, "min_ms": 1.0, "p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 2.0}
    (tmp_path / "pytorch.json").write_text(json.dumps([{**figures, **times}]))
    assert run(gpu, bundle, tmp_path, "--pytorch", str(tmp_path / "pytorch.json")) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# TensorRT engines on NVIDIA Stand-In\n")
    assert f"tensorrt {version}" in text
    assert "compute_capability 9.0" in text
    assert "FAIL" not in text
    cells = [[cell.strip() for cell in line.split("|")] for line in text.partition("## Speed")[2].splitlines()]
    edits = {(line[1], line[-2]) for line in cells if "edit" in line}
    sides = {f"tensorrt {precision}" for precision in ("fp16", "fp32")}
    assert edits == {("1", "PyTorch"), *((batch, side) for batch in ("1", "2", "4", "6") for side in sides)}
    for precision in ("fp16", "fp32"):
        manifest = Bundle.load(tmp_path / "made" / precision).manifest
        assert (manifest.backend, manifest.precision) == ("tensorrt", precision)
        assert f"| {manifest.engine.decoder} | " in text


def test_an_engine_beyond_the_tolerances_fails(
    gpu: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_stand_in.install(monkeypatch)
    decode = TensorRtBackend.decode
    monkeypatch.setattr(TensorRtBackend, "decode", lambda self, latents: 255 - decode(self, latents))
    assert run(gpu, bundle, tmp_path, "--precision", "fp32") == 1
    assert "error: stage engine (" in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()


def test_bad_input(
    gpu: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_stand_in.install(monkeypatch)
    assert run(gpu, tmp_path / "absent", tmp_path) == 2
    assert "no bundle folder at" in capsys.readouterr().err
    assert run(gpu, bundle, tmp_path, "--pytorch", str(tmp_path / "absent")) == 2
    assert "make it with: gpu.py pytorch --run RUN --json FILE" in capsys.readouterr().err
    assert run(gpu, bundle, tmp_path / "absent") == 2
    assert "report.md: there is no folder" in capsys.readouterr().err
    assert run(gpu, bundle, tmp_path, "--seconds", "0") == 2
    assert "--seconds 0.0: must be above 0" in capsys.readouterr().err
    gpu_stand_in.install(monkeypatch, gpus=0)
    assert run(gpu, bundle, tmp_path) == 2
    assert "CUDA finds no GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
