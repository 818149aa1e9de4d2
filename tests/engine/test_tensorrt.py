"""The TensorRT backend over the stand-in of tests/gpu_stand_in.py, and, where there is a GPU, over the real one."""

import gc
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_stand_in
import numpy as np
import pytest
from exactness import check_a_batch, check_parts_of_a_larger_buffer, check_results_belong_to_the_caller
from runs import LATENT_DIM, small_vae, smooth_images
from tiny_model import LATENT_DIM as TINY_DIM
from tiny_model import images_of, latents_of, random_images

from engine.backends import Options
from engine.backends.base import bucket_sizes
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.tensorrt import TensorRtBackend, fits, require_device
from engine.errors import BackendError, BundleError
from engine.proof.figures import ImageError, LatentError
from export.engines.plans import PlanBuilder
from export.graphs.edit import write_edit_by_steps
from export.graphs.fp16 import write_half
from export.graphs.trace import write_graphs

GRAPHS = ("encoder", "decoder")


def build(folder: Path, max_batch: int, backend: str = "tensorrt") -> None:
    write_edit_by_steps(folder / "encoder.onnx", folder / "decoder.onnx", folder / "edit.onnx")
    for name in (*GRAPHS, "edit"):
        graph, plan, cache = folder / f"{name}.onnx", folder / f"{name}.plan", folder / "timing.cache"
        PlanBuilder(max_batch=max_batch, timing_cache=cache, say=print).build(graph, plan, backend=backend)


def open_plans(folder: Path, max_batch_size: int, fused: bool = True, **named: Any) -> TensorRtBackend:
    edit = folder / "edit.plan" if fused else None
    given = {"backend": "tensorrt", "device": "cuda", "max_batch_size": max_batch_size, "edit": edit}
    options = Options(**{**given, **named})
    return TensorRtBackend(folder / "encoder.plan", folder / "decoder.plan", options)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> gpu_stand_in.TensorRt:
    return gpu_stand_in.install(monkeypatch)


@pytest.fixture
def plans(trt: gpu_stand_in.TensorRt, tiny_bundle: Path, tmp_path: Path) -> Path:
    """Plans of the tiny model, for up to 6 images."""
    for name in GRAPHS:
        shutil.copyfile(tiny_bundle / f"{name}.onnx", tmp_path / f"{name}.onnx")
    build(tmp_path, 6)
    return tmp_path


def test_buckets_are_powers_of_two_and_the_largest() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(6) == [1, 2, 4, 6]
    assert bucket_sizes(32) == [1, 2, 4, 8, 16, 32]


def test_both_graphs_take_any_batch(plans: Path) -> None:
    backend = open_plans(plans, 6)
    for count in (6, 1, 2, 3, 5, 13, 1, 6):
        check_a_batch(backend, count)


def test_no_images_give_no_results(plans: Path) -> None:
    mu, log_var = open_plans(plans, 6).encode(random_images(0, seed=0))
    assert mu.shape == log_var.shape == (0, TINY_DIM)


def test_results_belong_to_the_caller(plans: Path) -> None:
    check_results_belong_to_the_caller(open_plans(plans, 6), 6)


def test_inputs_may_be_parts_of_a_larger_buffer(plans: Path) -> None:
    check_parts_of_a_larger_buffer(open_plans(plans, 6), 12)


def test_a_call_is_one_launch_of_a_graph_captured_beforehand(plans: Path, trt: gpu_stand_in.TensorRt) -> None:
    backend = open_plans(plans, 6)
    cuda = trt.cuda
    assert cuda.calls.count("cudaGraphInstantiate") == 3 * len(bucket_sizes(6))
    cuda.calls.clear()
    backend.encode(random_images(3, seed=0))
    assert cuda.calls == ["cudaSetDevice", "cudaGraphLaunch", "cudaStreamSynchronize"]
    cuda.calls.clear()
    backend.edit(random_images(3, seed=0), np.zeros((3, TINY_DIM), np.float32))
    assert cuda.calls == ["cudaSetDevice", "cudaGraphLaunch", "cudaStreamSynchronize"]


def test_an_edit_is_encoding_adding_and_decoding(plans: Path) -> None:
    fused, apart = open_plans(plans, 6), open_plans(plans, 6, fused=False)
    for count in (6, 1, 3, 13, 0):
        images = random_images(count, seed=count)
        steps = np.random.default_rng(count).normal(0, 50, (count, TINY_DIM)).astype(np.float32)
        for backend in (fused, apart):
            edited, mu = backend.edit(images, steps)
            np.testing.assert_array_equal(mu, latents_of(images))
            np.testing.assert_array_equal(edited, images_of(mu + steps))


@pytest.mark.parametrize(
    ("built", "runs"),
    [
        ({}, True),
        ({"gpu": "NVIDIA Other"}, False),
        ({"tensorrt": "10.4.0"}, False),
        ({"compute_capability": "8.9"}, False),
        ({"gpu": "NVIDIA Other", "hardware_compatibility": "none"}, False),
        ({"gpu": "NVIDIA Other", "hardware_compatibility": "same-compute-capability"}, True),
        ({"compute_capability": "8.9", "hardware_compatibility": "same-compute-capability"}, False),
        ({"gpu": "NVIDIA A100", "compute_capability": "8.0", "hardware_compatibility": "ampere-plus"}, True),
        ({"tensorrt": "10.4.0", "hardware_compatibility": "ampere-plus"}, False),
    ],
)
def test_plans_are_for_the_gpus_that_the_manifest_says(
    trt: gpu_stand_in.TensorRt, built: dict[str, str], runs: bool
) -> None:
    here = require_device()
    assert fits({**here, **built}, here) == runs


def test_no_gpu_before_ampere_runs_plans_for_ampere() -> None:
    here = {"tensorrt": "10.3.0", "gpu": "Tesla T4", "compute_capability": "7.5"}
    assert not fits({**here, "gpu": "NVIDIA A100", "hardware_compatibility": "ampere-plus"}, here)


def test_each_backend_keeps_to_its_gpu_from_any_thread(plans: Path, trt: gpu_stand_in.TensorRt) -> None:
    trt.cuda.gpus = 2
    first, second = open_plans(plans, 6), open_plans(plans, 6, device="cuda:1")
    images = random_images(3, seed=0)
    with ThreadPoolExecutor(1) as thread:
        for backend in (first, second, first):
            mu = thread.submit(backend.encode, images).result()[0]
            np.testing.assert_array_equal(mu, latents_of(images))
        thread.submit(first.close).result()
        thread.submit(second.close).result()
    assert not trt.cuda.memory


def test_a_gpu_that_is_not_there_is_named(plans: Path, trt: gpu_stand_in.TensorRt) -> None:
    with pytest.raises(BackendError, match=r"no GPU cuda:1; the last one that it can use is cuda$"):
        open_plans(plans, 6, device="cuda:1")


@pytest.mark.parametrize("how", ["close", "end of life"])
def test_everything_on_the_gpu_is_freed(plans: Path, trt: gpu_stand_in.TensorRt, how: str) -> None:
    backend = open_plans(plans, 6)
    assert trt.cuda.memory
    if how == "close":
        backend.close()
        backend.close()
        with pytest.raises(BackendError, match=r"encoder\.plan was closed"):
            backend.encode(random_images(1, seed=0))
    else:
        del backend
        gc.collect()
    assert not trt.cuda.memory
    assert not trt.cuda.queued
    assert not trt.contexts
    assert not any(trt.cuda.graphs.values())


def test_tensorrt_for_rtx_compiles_before_a_graph_is_captured(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = gpu_stand_in.install_rtx(monkeypatch)
    for name in GRAPHS:
        shutil.copyfile(tiny_bundle / f"{name}.onnx", tmp_path / f"{name}.onnx")
    build(tmp_path, 6, "tensorrt-rtx")
    assert not (tmp_path / "timing.cache").exists()
    backend = open_plans(tmp_path, 6, backend="tensorrt-rtx")
    eager = trt.DynamicShapesKernelSpecializationStrategy["EAGER"]
    assert {context.settings.dynamic_shapes_kernel_specialization_strategy for context in trt.contexts} == {eager}
    images = random_images(3, seed=3)
    np.testing.assert_array_equal(backend.encode(images)[0], latents_of(images))


@pytest.mark.parametrize(("gpu", "fits"), [("8.9", True), ("13.0", True), ("9.0", False), ("7.5", False)])
def test_tensorrt_for_rtx_is_for_some_gpus(monkeypatch: pytest.MonkeyPatch, gpu: str, fits: bool) -> None:
    gpu_stand_in.install_rtx(monkeypatch, gpu)
    if fits:
        assert require_device("tensorrt-rtx")["tensorrt-rtx"] == "1.7.1"
    else:
        with pytest.raises(BackendError, match=rf"this machine has NVIDIA Stand-In with {gpu}; .*export\.retarget$"):
            require_device("tensorrt-rtx")


def test_errors_of_cuda_are_named(plans: Path, trt: gpu_stand_in.TensorRt) -> None:
    backend = open_plans(plans, 6)
    trt.cuda.failing["cudaGraphLaunch"] = gpu_stand_in.OUT_OF_MEMORY
    with pytest.raises(BackendError, match="cudaGraphLaunch failed: out of memory, code 2"):
        backend.encode(random_images(1, seed=0))


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc", "cudaGraphInstantiate", "cudaStreamEndCapture"])
def test_a_failure_while_opening_frees_what_was_taken(plans: Path, trt: gpu_stand_in.TensorRt, function: str) -> None:
    trt.cuda.failing[function] = gpu_stand_in.OUT_OF_MEMORY
    with pytest.raises(BackendError, match=f"{function} failed: out of memory"):
        open_plans(plans, 6)
    gc.collect()
    assert not trt.cuda.memory


def test_a_plan_of_another_tensorrt_is_refused(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_stand_in.install(monkeypatch, "11.1.0")
    with pytest.raises(
        BundleError,
        match=r"TensorRT 11\.1\.0 can't open .*encoder\.plan: the plan was serialized by .*export\.retarget BUNDLE",
    ):
        open_plans(plans, 6)


def test_damaged_missing_foreign_and_small_plans_are_named(plans: Path) -> None:
    with pytest.raises(BundleError, match=r"encoder\.plan takes up to 6 images, not 7; make the plans again"):
        open_plans(plans, 7)
    (plans / "decoder.plan").write_bytes((plans / "encoder.plan").read_bytes())
    with pytest.raises(BundleError, match=r"decoder\.plan has the tensors .*'mu'.*; the engine needs .*'latents'"):
        open_plans(plans, 6)
    (plans / "decoder.plan").write_bytes(b"no plan")
    with pytest.raises(BundleError, match=r"can't open .*decoder\.plan"):
        open_plans(plans, 6)
    (plans / "decoder.plan").unlink()
    with pytest.raises(BundleError, match=r"no TensorRT plan at .*decoder\.plan"):
        open_plans(plans, 6)


def test_the_device_is_described(trt: gpu_stand_in.TensorRt) -> None:
    assert require_device() == {"tensorrt": "10.3.0", "gpu": "NVIDIA Stand-In", "compute_capability": "9.0"}


def test_without_a_driver_tensorrt_is_not_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = gpu_stand_in.install(monkeypatch, gpus=0)
    with pytest.raises(BackendError, match=r"no GPU that it can use \(CUDA driver version is insufficient, code 35\)"):
        open_plans(tmp_path, 6)
    assert not trt.configs


def test_a_tensorrt_that_does_not_start_says_why(
    plans: Path, trt: gpu_stand_in.TensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(log: Any) -> None:
        log.log(trt.Severity.WARNING, "CUDA initialization failure")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, "Runtime", refuse)
    with pytest.raises(BackendError, match=r"TensorRT 10\.3\.0 can't start its Runtime: CUDA initialization failure"):
        open_plans(plans, 6)


def test_without_visible_gpus_that_is_said(trt: gpu_stand_in.TensorRt) -> None:
    trt.cuda.gpus = 0
    with pytest.raises(BackendError, match=r"no GPU that it can use \(none is visible\).*nvidia-smi"):
        require_device()


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_stand_in.install(monkeypatch)
    for module in ("cuda.bindings.runtime", "cuda"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=r"need cuda-bindings, which can't be imported.*pip install 'cuda-bindings<"):
        require_device()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"needs TensorRT, which can't be imported.*'dfc-vae\[tensorrt\]'"):
        require_device()


def test_the_module_itself_needs_neither() -> None:
    """In a process of its own: a module loaded anew beside the old one would split every later test's patches."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('tensorrt', 'cuda')));"
        "from engine.backends.tensorrt import bucket_sizes; print(bucket_sizes(3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1, 2, 3]\n"


def test_the_real_cuda_runtime_says_whether_there_is_a_gpu() -> None:
    """The same calls through the real cuda-bindings, whose names and results the stand-in must have right."""
    pytest.importorskip("cuda.bindings.runtime")
    from engine.backends.cuda import Cuda

    if Path("/dev/nvidiactl").exists():
        assert Cuda().gpu()["compute_capability"].count(".") == 1
    else:
        with pytest.raises(BackendError, match=r"CUDA finds no GPU that it can use .*, code"):
            Cuda()


def test_fp16_plans_of_a_vae_agree_with_fp32(tmp_path: Path) -> None:
    """Needs TensorRT and a GPU."""
    pytest.importorskip("tensorrt")
    try:
        require_device()
    except BackendError as error:
        pytest.skip(str(error))
    write_graphs(small_vae(), tmp_path, "ab" * 32)
    exact = OnnxRuntimeBackend(tmp_path / "encoder.onnx", tmp_path / "decoder.onnx", Options())
    (tmp_path / "fp16").mkdir()
    for name in GRAPHS:
        write_half(tmp_path / f"{name}.onnx", tmp_path / "fp16" / f"{name}.onnx")
    build(tmp_path / "fp16", 8)
    images = smooth_images(8, 64)
    latents = np.random.default_rng(0).standard_normal((8, LATENT_DIM), dtype=np.float32)
    backend = open_plans(tmp_path / "fp16", 8)
    for count in (1, 3, 8):
        for mine, truth in zip(backend.encode(images[:count]), exact.encode(images[:count]), strict=True):
            assert LatentError.between(mine, truth).max_relative < 0.05
        assert ImageError.between(backend.decode(latents[:count]), exact.decode(latents[:count])).max_levels <= 4
    backend.close()
