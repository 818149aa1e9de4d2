"""The GPU benchmark from prepare to report, over the stand-in of tests/gpu_stand_in.py: real graphs, no device."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_stand_in
import numpy as np
import pytest
from runs import write_run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The benchmark as a module, with turns as short as can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        speed = importlib.import_module("gpu_speed")
        patch.setattr(speed, "BLOCK_SECONDS", 0.001)
        patch.setattr(speed, "MIN_CALLS", 1)
        yield importlib.import_module("gpu")


@pytest.fixture(scope="module")
def job(gpu: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    run_folder = str(write_run(folder / "run"))
    assert gpu.main(["prepare", "--run", run_folder, "--job", str(folder / "job"), "--max-batch", "6"]) == 0
    return folder / "job"


def run(gpu: Any, job: Path, folder: Path) -> int:
    options = ["--plans", folder / "plans", "--report", folder / "report.md", "--seconds", "0.001"]
    code: int = gpu.main(["run", "--job", str(job), *map(str, options)])
    return code


def test_a_job_holds_all_that_the_gpu_machine_needs(job: Path) -> None:
    graphs = ["decoder.onnx", "decoder.phases.onnx", "decoder.tail.onnx", "encoder.onnx", "encoder.product.onnx"]
    others = ["directions.safetensors", "expected.npz", "job.json", "site"]
    assert sorted(path.name for path in job.iterdir()) == sorted([*graphs, *others])
    assert (job / "site" / "safetensors" / "numpy.py").is_file()
    assert json.loads((job / "job.json").read_text())["truth"] == "PyTorch eager FP32"


@pytest.mark.parametrize("version", ["8.6.0", "11.1.0"])
def test_a_report_of_builds_parity_and_speed(
    gpu: Any, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    gpu_stand_in.install(monkeypatch, version)
    assert run(gpu, job, tmp_path) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# FP16 engines on NVIDIA Stand-In\n")
    assert f"tensorrt {version}" in text
    assert "compute_capability 9.0" in text
    assert text.count("| encoder.") == 2
    assert "FAIL" not in text
    for batch in (1, 2, 4, 6):
        assert f"| {batch} | edit | " in text
    assert "plain + plain, without CUDA graphs" in text


def test_graphs_that_tensorrt_refuses_are_reported_and_the_rest_is_measured(
    gpu: Any, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = gpu_stand_in.install(monkeypatch)
    parser: Any = trt.OnnxParser

    def picky(network: Any, log: Any) -> Any:
        made = parser(network, log)
        parse = made.parse
        made.parse = lambda content: b"/encoder/convolution/product/MatMul" not in content and parse(content)
        return made

    monkeypatch.setattr(trt, "OnnxParser", picky)
    assert run(gpu, job, tmp_path) == 0
    text = (tmp_path / "report.md").read_text()
    assert "- encoder.product.onnx was refused: TensorRT 10.3.0 can't read " in text
    assert "plain + plain" in text
    assert "product + tail" not in text


def test_an_engine_beyond_the_tolerances_is_reported_and_fails(
    gpu: Any, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_stand_in.install(monkeypatch)
    decode = gpu.TensorRtBackend.decode
    monkeypatch.setattr(gpu.TensorRtBackend, "decode", lambda self, latents: 255 - decode(self, latents))
    assert run(gpu, job, tmp_path) == 1
    assert "FAIL" in (tmp_path / "report.md").read_text()
    assert "beyond the tolerances" in capsys.readouterr().err


def test_a_job_of_another_version_is_refused(
    gpu: Any, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_stand_in.install(monkeypatch)
    old = tmp_path / "job"
    old.mkdir()
    for path in job.iterdir():
        (old / path.name).symlink_to(path)
    (old / "expected.npz").unlink()
    with np.load(job / "expected.npz") as arrays:
        np.savez(old / "expected.npz", allow_pickle=False, **{name: arrays[name] + 1 for name in arrays.files})
    assert run(gpu, old, tmp_path) == 2
    assert "recorded by another version of this program: prepare the job again" in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()


def test_a_job_that_cannot_be_made_is_refused(
    gpu: Any, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["prepare", "--run", str(tmp_path), "--job", str(job)]) == 2
    assert "exists already; remove it, or name another folder" in capsys.readouterr().err
    assert gpu.main(["prepare", "--run", str(tmp_path), "--job", str(tmp_path / "new")]) == 2
    assert not list(tmp_path.iterdir())
    assert gpu.main(["prepare", "--run", str(tmp_path), "--job", str(tmp_path / "new"), "--max-batch", "0"]) == 2
    assert "--max-batch 0: must be at least 1" in capsys.readouterr().err


def test_without_a_job_or_a_gpu_that_is_said(
    gpu: Any, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_stand_in.install(monkeypatch)
    assert run(gpu, tmp_path / "absent", tmp_path) == 2
    assert "gpu.py prepare --run RUN --job JOB" in capsys.readouterr().err
    gpu_stand_in.install(monkeypatch, gpus=0)
    assert run(gpu, job, tmp_path) == 2
    assert "CUDA finds no GPU" in capsys.readouterr().err
