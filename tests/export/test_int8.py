import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from runs import ATTRIBUTES, FORMS, LATENT_DIM, small_vae, smooth_images

from engine.backends import Backend, Options, open_graphs
from engine.errors import BackendError
from engine.latents import Directions
from engine.proof.figures import ImageError
from export.graphs.fp16 import write_half
from export.graphs.int8 import Calibration, require_nncf, write_int8
from export.graphs.names import DecoderForm
from export.graphs.trace import write_decoder, write_encoder
from export.proof.reference import EagerBackend

Graphs = tuple[Path, Path]

IMAGES = smooth_images(4, 64)
DIRECTIONS = Directions(ATTRIBUTES, 2 * np.eye(3, LATENT_DIM, dtype=np.float32), (20,) * 3, (20,) * 3, "train")


def write(folder: Path, form: str, *, symmetric: bool = False) -> Graphs:
    """INT8 graphs of a small network, calibrated on a few images."""
    pytest.importorskip("nncf")
    model = small_vae(FORMS[form])
    calibration = Calibration.of(EagerBackend(model), smooth_images(24, FORMS[form].image_size), DIRECTIONS)
    sources = write_encoder(model, "plain", folder, "ab"), write_decoder(model, "phases", folder, "ab")
    targets = folder / "encoder.int8.onnx", folder / "decoder.int8.onnx"
    for source, target in zip(sources, targets, strict=True):
        write_int8(folder / source, target, calibration, symmetric=symmetric)
    return targets


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Graphs]:
    """`write`, once for all tests that leave the graphs as they are."""
    return cache(lambda form, symmetric=False: write(tmp_path_factory.mktemp(form), form, symmetric=symmetric))


def run(path: Path) -> list[Any]:
    """What a graph gives by ONNX Runtime, as float32."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    if value.name == "images":
        return list(session.run(None, {"images": IMAGES}))
    latents = np.random.default_rng(0).standard_normal((4, LATENT_DIM), dtype=np.float32)
    return [values.astype(np.float32) for values in session.run(None, {"latents": latents})]


def zero_points(path: Path) -> Counter[tuple[str, bool]]:
    """Types of a graph's zero points, and whether they are 0."""
    graph = onnx.load(path).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    points = [values[node.input[2]] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return Counter((str(point.dtype), not point.any()) for point in points)


def test_rounding_moves_no_mean_of_what_was_calibrated_on(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    model, images = EagerBackend(small_vae()), smooth_images(24, 64)
    calibration = Calibration(images, model.encode(images)[0])
    write_encoder(small_vae(), "plain", tmp_path, "ab")
    write_int8(tmp_path / "encoder.onnx", tmp_path / "encoder.int8.onnx", calibration, symmetric=False)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.int8.onnx", providers=["CPUExecutionProvider"])
    for values, reference in zip(session.run(None, {"images": images}), model.encode(images), strict=True):
        error = values - reference
        assert np.abs(error.mean(axis=0)).max() < 0.05 * error.std()


def test_calibration_covers_what_the_decoder_will_be_given() -> None:
    model = EagerBackend(small_vae())
    images = smooth_images(40, 64)
    calibration = Calibration.of(model, images, DIRECTIONS)
    mu, _ = model.encode(images)
    assert len(calibration.latents) == 3 * len(images)
    np.testing.assert_allclose(calibration.latents[:40], mu, atol=1e-5)
    assert 0.9 < calibration.latents[40:80].std() < 1.1
    moved = calibration.latents[80:]
    expected = mu[0] + 1.5 * DIRECTIONS.vectors[0]
    np.testing.assert_allclose(moved[0], expected, atol=1e-5)
    assert any(np.allclose(row, mu[1] - 1.5 * DIRECTIONS.vectors[0], atol=1e-5) for row in moved)


@pytest.mark.parametrize("form", FORMS)
def test_quantised_graphs_show_nearly_the_same(written: Callable[..., Graphs], form: str) -> None:
    encoder, decoder = written(form)
    model = EagerBackend(small_vae(FORMS[form]))
    images = smooth_images(13, FORMS[form].image_size)
    mu, _ = model.encode(images)
    expected = model.decode(mu)

    def check(engine: Backend) -> None:
        spread = mu.std()
        assert np.abs(engine.encode(images)[0] - mu).mean() < 0.1 * spread
        error = ImageError.between(engine.decode(mu), expected)
        assert error.psnr_db is not None  # something was quantised
        assert error.psnr_db > 25  # random weights lose more than trained ones

    options = Options(precision="int8", max_batch_size=8, threads=1)
    check(open_graphs(encoder, decoder, options))
    pytest.importorskip("openvino")
    check(open_graphs(encoder, decoder, replace(options, backend="openvino")))


def test_weights_are_int8_and_the_doors_are_as_they_were(written: Callable[..., Graphs]) -> None:
    encoder, _ = written("seed-64")
    before, after = onnx.load(encoder.with_name("encoder.onnx")), onnx.load(encoder)
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    assert max(entry.version for entry in after.opset_import if not entry.domain) == 17
    weights = {tuple(tensor.dims): tensor.data_type for tensor in before.graph.initializer if len(tensor.dims) == 4}
    quantised = {tuple(tensor.dims): tensor.data_type for tensor in after.graph.initializer if len(tensor.dims) == 4}
    assert quantised == dict.fromkeys(weights, onnx.TensorProto.INT8)
    metadata = {entry.key: entry.value for entry in after.metadata_props}
    assert (metadata["model_sha256"], metadata["precision"]) == ("ab", "int8")
    assert after.producer_name == "dfc-vae"


def test_the_same_run_gives_the_same_bytes(written: Callable[..., Graphs], tmp_path: Path) -> None:
    again = write(tmp_path, "seed-64")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written("seed-64")]


def test_symmetric_graphs_are_what_tensorrt_reads(written: Callable[..., Graphs]) -> None:
    encoder, decoder = written("seed-64", symmetric=True)
    for path in (encoder, decoder):
        assert set(zero_points(path)) == {("int8", True)}
    first = next(node for node in onnx.load(encoder).graph.node if node.op_type == "Conv")
    assert "Dequantize" not in first.input[1]  # its pixels have no sign


@pytest.mark.parametrize("symmetric", [True, False])
def test_pixels_are_not_rounded_on_their_way_to_the_first_convolution(
    written: Callable[..., Graphs], symmetric: bool
) -> None:
    encoder, _ = written("seed-64", symmetric=symmetric)
    assert [node.op_type for node in onnx.load(encoder).graph.node][:3] == ["Cast", "Transpose", "Div"]


@pytest.mark.parametrize("form", ["seed-64", "paper-64"])
def test_on_a_gpu_float_is_fp16_and_int8_layers_read_their_scales(
    written: Callable[..., Graphs], tmp_path: Path, form: str
) -> None:
    """A cast between the scales and the layer would keep TensorRT from computing in int8."""
    for source in written(form, symmetric=True):
        before, path = run(source), tmp_path / source.name
        write_half(source, path)
        graph = onnx.load(path).graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
        made = {name: node for node in graph.node for name in node.output}
        found: Counter[str] = Counter()
        for node in graph.node:
            if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
                continue
            weight = made.get(node.input[1])
            if weight is None:
                assert kinds[node.input[1]] == onnx.TensorProto.FLOAT16
            else:
                feeding = made[node.input[0]]
                while feeding.op_type in ("Reshape", "Flatten", "Slice", "Concat", "DepthToSpace", "Pad", "Transpose"):
                    feeding = made[feeding.input[0]]
                assert (weight.op_type, feeding.op_type) == ("DequantizeLinear", "DequantizeLinear"), node.name
            found["float" if weight is None else "int8"] += 1
        assert found["float"] == 1
        assert found["int8"] >= 3
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert metadata["precision"] == "int8"
        for mine, rounded in zip(run(path), before, strict=True):
            assert np.abs(mine - rounded).mean() < 0.05 * before[0].std()


def test_asymmetric_graphs_use_the_whole_range(written: Callable[..., Graphs]) -> None:
    assert any(not zero for path in written("seed-64") for _, zero in zero_points(path))


def test_without_nncf_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(BackendError, match=r"nncf, which is not installed; pip install 'dfc-vae\[int8\]'"):
        require_nncf()


def test_small_sizes_are_no_special_case(tmp_path: Path) -> None:
    """One image to calibrate on, and more directions than images."""
    pytest.importorskip("nncf")
    model = small_vae(replace(FORMS["seed-64"], channels=(4, 4, 4, 4, 4)))
    calibration = Calibration.of(EagerBackend(model), smooth_images(1, 64), DIRECTIONS)
    assert len(calibration.latents) == 3
    name = write_decoder(model, "plain", tmp_path, "ab")
    write_int8(tmp_path / name, tmp_path / "q.onnx", calibration, symmetric=False)
    assert (tmp_path / "q.onnx").stat().st_size


@pytest.mark.parametrize("form", ["plain", "tail", "phases"])
def test_openvino_computes_every_layer_of_a_decoder_in_int8(tmp_path: Path, form: DecoderForm) -> None:
    pytest.importorskip("nncf")
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    if "INT8" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no units for int8")
    model = small_vae(replace(FORMS["seed-64"], channels=(16, 16, 16, 16, 16)))
    source = tmp_path / write_decoder(model, form, tmp_path, "ab")
    calibration = Calibration.of(EagerBackend(model), smooth_images(24, 64), DIRECTIONS)
    write_int8(source, tmp_path / "int8.onnx", calibration, symmetric=False)
    compiled = core.compile_model(tmp_path / "int8.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = {"Convolution", "ConvolutionBackpropData", "Deconvolution", "FullyConnected"}
    computed = {}
    for node in compiled.get_runtime_model().get_ops():
        told = {
            name: node.get_rt_info()[name].value for name in ("layerType", "originalLayersNames", "runtimePrecision")
        }
        if told["layerType"] in kinds:
            computed[told["originalLayersNames"]] = told["runtimePrecision"]
    assert len(computed) >= 5
    assert set(computed.values()) <= {"i8", "u8"}, computed
