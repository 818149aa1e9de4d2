import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import reseal
from exactness import (
    check_a_batch,
    check_batches_that_overlap,
    check_parts_of_a_larger_buffer,
    check_results_belong_to_the_caller,
)
from servers import run_python
from tiny_model import IMAGE_SIZE, LATENT_DIM, images_of, latents_of, random_images

from engine.backends import Options, open_backend, open_graphs, warmup_calls
from engine.bundle import Bundle
from engine.errors import BackendError, BundleError

openvino = pytest.importorskip("openvino")
HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_tiny(folder: Path, precision: str = "fp32", **options: Any) -> Any:
    given = Options(backend="openvino", precision=precision, **{"max_batch_size": 8, "threads": 1, **options})
    return open_graphs(folder / "encoder.onnx", folder / "decoder.onnx", given)


@pytest.mark.parametrize(("split", "threads"), [(False, 1), (True, 2), (True, 3)])
def test_both_graphs_take_any_batch(tiny_bundle: Path, split: bool, threads: int) -> None:
    backend = open_tiny(tiny_bundle, split=split, threads=threads)
    for count in (1, 2, 3, 7, 8, 40):
        check_a_batch(backend, count)


def test_results_belong_to_the_caller(tiny_bundle: Path) -> None:
    check_results_belong_to_the_caller(open_tiny(tiny_bundle), 8)


def test_inputs_may_be_parts_of_a_larger_buffer(tiny_bundle: Path) -> None:
    check_parts_of_a_larger_buffer(open_tiny(tiny_bundle), 8)


def test_a_bundle_names_it(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"onnxruntime"', '"openvino"'))
    bundle = Bundle.load(folder)
    backend = open_backend(bundle, threads=1)
    assert type(backend).__name__ == "OpenVinoBackend"
    for call in warmup_calls(backend, bundle.manifest):
        call()
    latents = np.full((3, LATENT_DIM), 7.0, np.float32)
    np.testing.assert_array_equal(backend.decode(latents), np.full((3, IMAGE_SIZE, IMAGE_SIZE, 3), 7, np.uint8))


_SIGNALLED = """
import signal, sys
from pathlib import Path
from engine.backends import Options, open_graphs
folder = Path(sys.argv[1])
graphs = folder / "encoder.onnx", folder / "decoder.onnx"
backends = [open_graphs(*graphs, Options(backend="openvino", max_batch_size=8, threads=1)) for _ in range(2)]
while backends:
    del backends[0]
signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
signal.raise_signal(signal.SIGINT)
"""


def test_signals_can_be_handled_once_engines_are_freed(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run_python(["-c", _SIGNALLED, str(tiny_bundle)], tmp_path)
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr


def test_what_openvino_cannot_compile_here_is_one_sentence(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Exception from src/core.cpp:117:\nobject is not initialized\n\n")

    monkeypatch.setattr(openvino.Core, "compile_model", refuse)
    with pytest.raises(BackendError, match="object is not initialized") as told:
        open_tiny(tiny_bundle)
    assert "in fp32 on this machine" in str(told.value)
    assert "\n" not in str(told.value)


def test_damaged_and_foreign_graphs_are_named(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (folder / "decoder.onnx").write_bytes((folder / "encoder.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"decoder\.onnx has inputs \['images'\]"):
        open_tiny(folder)
    (folder / "decoder.onnx").write_bytes(b"no graph")
    reseal(folder)
    with pytest.raises(BundleError, match=r"can't open .*decoder\.onnx: .*\w"):
        open_tiny(folder)
    (folder / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"no ONNX graph at .*decoder\.onnx"):
        open_tiny(folder)


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 units")
def test_bf16_computes_in_bf16_and_answers_in_float32(tmp_path: Path) -> None:
    path = _matrix_graphs(tmp_path)
    images = random_images(4, seed=0)
    exact, _ = open_tiny(path, "fp32").encode(images)
    rounded, _ = open_tiny(path, "bf16").encode(images)
    assert rounded.dtype == np.float32
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 2e-2


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_precision_without_units_for_it_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    class Old:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "FP16"]

    monkeypatch.setattr("engine.backends.openvino._core", Old)
    with pytest.raises(
        BackendError, match=rf"no units for {precision} \(OpenVINO finds FP32, FP16\).*--precision fp32"
    ):
        open_tiny(tiny_bundle, precision)


@pytest.mark.parametrize(("units", "floats"), [(["FP32", "INT8"], "fp32"), (["FP32", "INT8", "BF16"], "bf16")])
def test_what_int8_leaves_in_float_takes_the_fastest_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: list[str], floats: str
) -> None:
    if floats == "bf16" and not HAS_BF16:
        pytest.skip("this CPU has no bf16 units")
    path = _matrix_graphs(tmp_path)
    images = random_images(4, seed=0)
    expected, _ = open_tiny(path, floats).encode(images)
    monkeypatch.setattr("engine.backends.openvino._capabilities", lambda: units)
    np.testing.assert_array_equal(open_tiny(path, "int8").encode(images)[0], expected)


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 units")
def test_where_bf16_fails_beside_int8_the_log_says_what_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, images = _matrix_graphs(tmp_path), random_images(4, seed=0)
    expected, _ = open_tiny(path, "fp32").encode(images)
    graph = importlib.import_module("engine.backends.openvino")._Graph

    def no_bf16(core: Any, model: Any, settings: dict[str, Any], *given: Any, **named: Any) -> Any:
        if settings["INFERENCE_PRECISION_HINT"] == "bf16":
            raise RuntimeError("Check failed at gemm.cpp:1\nno kernel")
        return graph(core, model, settings, *given, **named)

    monkeypatch.setattr("engine.backends.openvino._Graph", no_bf16)
    np.testing.assert_array_equal(open_tiny(path, "int8").encode(images)[0], expected)
    assert "computed in fp32: OpenVINO has no bf16 for it (no kernel)" in caplog.text


def test_without_openvino_the_extra_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "engine.backends.openvino", raising=False)
    with pytest.raises(BackendError, match=r"OpenVINO can't be imported \(.+\); pip install 'dfc-vae\[openvino\]'"):
        open_tiny(tiny_bundle)


def _matrix_graphs(folder: Path) -> Path:
    """An encoder with a matrix product, whose precision can be seen, and any decoder."""
    inner = onnx.helper
    weight = np.random.default_rng(0).standard_normal((LATENT_DIM, 2 * LATENT_DIM), dtype=np.float32)
    nodes = [
        inner.make_node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT),
        inner.make_node("Reshape", ["pixels", "flat"], ["rows"]),
        inner.make_node("MatMul", ["rows", "weight"], ["both"]),
        inner.make_node("Split", ["both"], ["mu", "log_var"], axis=1),
    ]
    floats, size = onnx.TensorProto.FLOAT, IMAGE_SIZE
    graph = inner.make_graph(
        nodes,
        "matrix",
        [inner.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", size, size, 3])],
        [inner.make_tensor_value_info(name, floats, ["N", LATENT_DIM]) for name in ("mu", "log_var")],
        [
            onnx.numpy_helper.from_array(np.array([-1, LATENT_DIM]), "flat"),
            onnx.numpy_helper.from_array(weight, "weight"),
        ],
    )
    model = inner.make_model(graph, opset_imports=[inner.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "encoder.onnx")
    decoder = inner.make_graph(
        [
            inner.make_node("Cast", ["latents"], ["bytes"], to=onnx.TensorProto.UINT8),
            inner.make_node("Reshape", ["bytes", "square"], ["images"]),
        ],
        "bytes",
        [inner.make_tensor_value_info("latents", floats, ["N", LATENT_DIM])],
        [inner.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", size, size, 3])],
        [onnx.numpy_helper.from_array(np.array([-1, size, size, 3]), "square")],
    )
    model = inner.make_model(decoder, opset_imports=[inner.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "decoder.onnx")
    return folder


@pytest.mark.parametrize(("split", "threads"), [(False, 1), (True, 2), (True, 3)])
def test_an_edit_in_one_graph_is_what_two_graphs_make_of_it(tiny_bundle: Path, split: bool, threads: int) -> None:
    backend = open_tiny(tiny_bundle, split=split, threads=threads)
    for count in (1, 2, 3, 7, 8, 40):
        images = random_images(count, seed=count)
        images.flags.writeable = False
        steps = np.random.default_rng(count).normal(0, 30, (count, LATENT_DIM)).astype(np.float32)
        edited, mu = backend.edit(images, steps)
        np.testing.assert_array_equal(mu, latents_of(images))
        np.testing.assert_array_equal(edited, images_of(latents_of(images) + steps))
    # And the two graphs that it was made from are as they were.
    np.testing.assert_array_equal(backend.encode(images)[0], latents_of(images))
    np.testing.assert_array_equal(backend.decode(latents_of(images)), images)


@pytest.mark.parametrize(("split", "threads"), [(False, 1), (True, 2)])
def test_batches_may_overlap(tiny_bundle: Path, split: bool, threads: int) -> None:
    check_batches_that_overlap(open_tiny(tiny_bundle, split=split, threads=threads))


@pytest.mark.parametrize("failing", ["start", "wait"])
def test_shares_are_waited_for_when_another_one_fails(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    backend, images = open_tiny(tiny_bundle, split=True, threads=3), random_images(8, seed=1)
    calls: list[tuple[str, int]] = []

    def noted(name: str) -> Any:
        inner = getattr(compiled, name)

        def call(self: Any, request: int, *arguments: Any) -> None:
            calls.append((name, request))
            # Both sets of three: one of the middle doesn't start, or the first two fail, at their end.
            fails = name == failing and request % 3 in ([1] if name == "start" else [0, 1])
            if not (fails and name == "start"):
                inner(self, request, *arguments)
            if fails:
                raise RuntimeError(f"{name} {request % 3}")

        return call

    compiled = importlib.import_module("engine.backends.openvino")._Compiled
    with monkeypatch.context() as patch:
        for name in ("start", "wait"):
            patch.setattr(compiled, name, noted(name))
        for _ in range(2):
            calls.clear()
            with pytest.raises(RuntimeError, match={"start": "start 1", "wait": "wait 0"}[failing]):
                backend.encode(images)
            waited = sorted(request % 3 for name, request in calls if name == "wait")
            assert waited == {"start": [0], "wait": [0, 1, 2]}[failing]
    np.testing.assert_array_equal(backend.encode(images)[0], latents_of(images))
