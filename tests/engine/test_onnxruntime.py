import gc
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import gpu_stand_in
import numpy as np
import onnx
import onnxruntime
import pytest
from exactness import check_a_batch, check_batches_that_overlap
from gates import until
from onnx import TensorProto, helper
from tiny_model import LATENT_DIM, latents_of, random_images

from engine.backends import Options
from engine.backends.onnxruntime import PROVIDERS, OnnxRuntimeBackend
from engine.errors import BackendError, BundleError

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.mark.parametrize(
    "options", [Options(), Options(threads=1), Options(threads=3, split=True), Options(threads=1, split=True)]
)
@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_both_graphs_take_any_batch(tiny_bundle: Path, count: int, options: Options) -> None:
    backend = OnnxRuntimeBackend(tiny_bundle / "encoder.onnx", tiny_bundle / "decoder.onnx", options)
    check_a_batch(backend, count)


@pytest.mark.parametrize("options", [Options(threads=1), Options(threads=2), Options(threads=2, split=True)])
def test_batches_overlap_on_a_cpu(tiny_bundle: Path, options: Options) -> None:
    check_batches_that_overlap(OnnxRuntimeBackend(tiny_bundle / "encoder.onnx", tiny_bundle / "decoder.onnx", options))


def test_a_split_batch_that_fails_is_forgotten_and_the_next_one_computed(tiny_bundle: Path) -> None:
    graphs = tiny_bundle / "encoder.onnx", tiny_bundle / "decoder.onnx"
    backend = OnnxRuntimeBackend(*graphs, Options(threads=3, split=True))
    batch = np.zeros((7, LATENT_DIM + 1), np.float32)
    forgotten = weakref.ref(batch)
    gc.disable()  # it would find what circles hold
    try:
        with suppress(Exception):
            backend.decode(batch)
            pytest.fail("it was computed")
        del batch
        until(lambda: forgotten() is None)  # other shares of it may still be computed
    finally:
        gc.enable()
    check_a_batch(backend, 7)


def test_a_missing_graph_is_named(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no ONNX graph at .*absent\.onnx"):
        OnnxRuntimeBackend(tiny_bundle / "encoder.onnx", tiny_bundle / "absent.onnx", Options())


def test_quantised_graphs_run_on_the_cpu(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / "encoder.onnx")
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [4.0]))
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.UINT8, [], [0]))
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    cast.output[0] = "exact"
    model.graph.node.insert(1, helper.make_node("QuantizeLinear", ["exact", "scale", "zero"], ["small"]))
    model.graph.node.insert(2, helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["pixels"]))
    onnx.save(model, tmp_path / "encoder.onnx")
    backend = OnnxRuntimeBackend(
        tmp_path / "encoder.onnx", tiny_bundle / "decoder.onnx", Options(threads=1, precision="int8")
    )
    images = random_images(4, seed=0)
    mu, _ = backend.encode(images)
    np.testing.assert_array_equal(mu, np.rint(latents_of(images) / 4) * 4)


def test_devices_that_are_there_pass() -> None:
    OnnxRuntimeBackend.check(Options(device="cpu"))


CUDA = Options(device="cuda", precision="fp16", threads=1)


@pytest.fixture
def bound(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> OnnxRuntimeBackend:
    """The way over bound buffers in buckets, in the memory of the CPU instead of a GPU's."""
    monkeypatch.setitem(PROVIDERS, "cuda", "CPUExecutionProvider")
    for name, value in {"_GPU_MEMORY": "cpu", "_CUDA_SESSION": {}, "_CUDA_OPTIONS": {}}.items():
        monkeypatch.setattr(f"engine.backends.onnxruntime.{name}", value)
    monkeypatch.setattr(OnnxRuntimeBackend, "check", lambda *_: None)
    options = Options(device="cuda", max_batch_size=6, threads=1)
    return OnnxRuntimeBackend(tiny_bundle / "encoder.onnx", tiny_bundle / "decoder.onnx", options)


def test_on_a_gpu_batches_are_computed_in_their_buckets(
    bound: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    allocate = onnxruntime.OrtValue.ortvalue_from_numpy

    def noted(rows: Any, *where: Any) -> Any:
        sizes.append(len(rows))
        return allocate(rows, *where)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", noted)
    for count in (6, 1, 2, 3, 5, 13, 1, 6, 0):
        images = random_images(count, seed=count)
        images.flags.writeable = False
        mu, log_var = bound.encode(images)
        np.testing.assert_array_equal(mu, latents_of(images))
        np.testing.assert_array_equal(log_var, latents_of(images) / -2)
    assert sizes == [6, 1, 2, 4]  # and none of them twice


def test_bound_buffers_are_for_one_batch_at_a_time(bound: OnnxRuntimeBackend) -> None:
    assert not bound.overlaps


def test_results_of_a_bucket_belong_to_the_caller(bound: OnnxRuntimeBackend) -> None:
    first, second = random_images(3, seed=1), random_images(3, seed=2)
    mu, _ = bound.encode(first)
    images = bound.decode(mu)
    bound.decode(bound.encode(second)[0])
    np.testing.assert_array_equal(mu, latents_of(first))
    np.testing.assert_array_equal(images, first)


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the CUDA provider")
def test_without_the_cuda_provider_the_extra_is_named(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"has no CUDAExecutionProvider .*\(it has .*CPU.*'dfc-vae\[gpu\]'"):
        OnnxRuntimeBackend(tiny_bundle / "encoder.onnx", tiny_bundle / "decoder.onnx", CUDA)


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the CUDA provider")
def test_without_a_gpu_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    cuda = gpu_stand_in.install(monkeypatch).cuda
    with pytest.raises(BackendError, match=r"can't use the GPU cuda \(.+\).*nvidia-smi"):
        OnnxRuntimeBackend.check(CUDA)
    cuda.gpus = 0
    with pytest.raises(BackendError, match=r"no GPU that it can use \(none is visible\).*nvidia-smi"):
        OnnxRuntimeBackend.check(CUDA)
    # What a proof is bound to is asked for before minutes of measuring.
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match=r"need cuda-bindings, which can't be imported"):
        OnnxRuntimeBackend.check(CUDA)


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the CUDA provider")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fall_back_to_the_cpu_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "check", lambda *_: None)
    with pytest.raises(BackendError, match=r"encoder\.onnx, or a part of it, on the CPU instead of by CUDAExecution"):
        OnnxRuntimeBackend(tiny_bundle / "encoder.onnx", tiny_bundle / "decoder.onnx", CUDA)
