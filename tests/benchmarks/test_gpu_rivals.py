"""What the GPU benchmark compares with, rehearsed on the CPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import LATENT_DIM, small_vae, smooth_images

from export.proof.reference import EagerBackend

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark's module; turns are as short as can be."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    speed = importlib.import_module("timing")
    monkeypatch.setattr(speed, "BLOCK_SECONDS", 0.001)
    monkeypatch.setattr(speed, "MIN_CALLS", 1)
    return importlib.import_module


@pytest.mark.parametrize(("dtype", "compiled"), [(torch.float16, False), (torch.bfloat16, True)])
def test_pytorch_in_half_precision_shows_nearly_the_same_and_keeps_no_result(
    benchmarks: Any, dtype: torch.dtype, compiled: bool
) -> None:
    model = small_vae()
    exact = EagerBackend(model)
    half = benchmarks("pytorch").PyTorchBackend(model, dtype, compiled=compiled, device="cpu")
    images, steps = smooth_images(3, 64), np.ones((3, LATENT_DIM), np.float32)
    # Compiling takes a minute; the same code runs without.
    with torch.compiler.set_stance("force_eager"):
        mu, log_var = half.encode(images)
        edited, again = half.edit(images, steps)
        kept = mu.copy()
        half.encode(images[::-1].copy())
        decoded = half.decode(mu + steps)
    np.testing.assert_array_equal(mu, kept)
    np.testing.assert_array_equal(mu, again)
    relative = 2**6 * torch.finfo(dtype).eps
    for mine, truth in zip((mu, log_var), exact.encode(images), strict=True):
        assert mine.dtype == np.float32
        assert 0 < np.abs(mine - truth).max() < relative * max(1, np.abs(truth).max())
    expected = exact.decode(exact.encode(images)[0] + steps).astype(int)
    for images_back in (edited, decoded):
        assert images_back.dtype == np.uint8
        assert images_back.flags.c_contiguous
        assert 0 < np.abs(images_back - expected).mean() < 3
        assert np.abs(images_back - expected).max() <= 2**11 * torch.finfo(dtype).eps
    assert next(model.parameters()).dtype == torch.float32


def test_a_server_is_asked_and_compared_with_its_engine(benchmarks: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    serve = benchmarks("gpu")
    report = tmp_path / "serve.json"
    options = ["--bundle", str(tiny_bundle), "--images", "1", "5", "--seconds", "0.001", "--json", str(report)]
    assert serve.main(["serve", *options]) == 0
    assert [row["images"] for row in json.loads(report.read_text())] == [1, 5]


def test_a_python_with_tensorrt_needs_no_more_than_the_server_and_retarget() -> None:
    others = ("torch", "torchvision", "psutil", "hpack", "hypothesis", "scipy", "sklearn", "matplotlib")
    code = f"import sys; sys.modules.update(dict.fromkeys({others})); import gpu, export.retarget"
    paths = {"PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_server_that_answers_otherwise_is_reported(
    benchmarks: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve = benchmarks("gpu")
    monkeypatch.setattr("engine.backends.onnxruntime.OnnxRuntimeBackend.edit", lambda _, images, steps: (images, steps))
    options = ["--bundle", str(tiny_bundle), "--images", "2", "--seconds", "0.001", "--json", str(tmp_path / "a.json")]
    assert serve.main(["serve", *options]) == 1
    assert "2 images: the server's are off by up to" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_no_bundle_is_bad_input(benchmarks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks("gpu").main(["serve", "--bundle", str(tmp_path), "--json", str(tmp_path / "a.json")]) == 2
    assert "is not a bundle" in capsys.readouterr().err
