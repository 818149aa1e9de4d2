from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from runs import FORMS, small_vae, smooth_images

from engine.backends import Options
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.proof.figures import ImageError, LatentError
from export.errors import InputError
from export.graphs.fp16 import KEPT, write_half
from export.graphs.names import DECODER_FORMS, ENCODER_FORMS
from export.graphs.trace import write_decoder, write_encoder

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@pytest.fixture(scope="module", params=list(FORMS.values()), ids=list(FORMS))
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every form of one network, with its FP16 form in the folder `half`."""
    folder = tmp_path_factory.mktemp("graphs")
    model = small_vae(request.param)
    names = [write_encoder(model, encoder, folder, "ab" * 32) for encoder in ENCODER_FORMS]
    names += [write_decoder(model, decoder, folder, "ab" * 32) for decoder in DECODER_FORMS]
    (folder / "half").mkdir()
    for name in names:
        write_half(folder / name, folder / "half" / name)
    return folder


def run(path: Path, value: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, {session.get_inputs()[0].name: value})
    return results


def signature(values: Any) -> list[Any]:
    return [(value.name, value.type.SerializeToString()) for value in values]


def pairs(graphs: Path, pattern: str) -> list[tuple[Path, Path]]:
    found = [(path, graphs / "half" / path.name) for path in sorted(graphs.glob(pattern))]
    assert found
    return found


def test_inputs_outputs_and_metadata_stay(graphs: Path) -> None:
    for full_path, half_path in pairs(graphs, "*.onnx"):
        full, half = onnx.load(full_path), onnx.load(half_path)
        onnx.checker.check_model(half, full_check=True)
        assert signature(half.graph.input) == signature(full.graph.input)
        assert signature(half.graph.output) == signature(full.graph.output)
        assert half.opset_import == full.opset_import
        assert half.opset_import[0].version <= 17
        assert half.graph.name == full.graph.name
        before = {entry.key: entry.value for entry in full.metadata_props}
        assert {entry.key: entry.value for entry in half.metadata_props} == {**before, "precision": "fp16"}


def test_encoders_agree_with_fp32_but_are_not_fp32(graphs: Path) -> None:
    (size,) = {path.type.tensor_type.shape.dim[1].dim_value for path in onnx.load(graphs / "encoder.onnx").graph.input}
    images = smooth_images(16, size)
    for full, half in pairs(graphs, "encoder*.onnx"):
        for exact, rounded in zip(run(full, images), run(half, images), strict=True):
            assert rounded.dtype == np.float32
            assert 1e-5 < LatentError.between(rounded, exact).max_relative < 0.02


def test_decoders_agree_with_fp32_but_are_not_fp32(graphs: Path) -> None:
    dim = onnx.load(graphs / "decoder.onnx").graph.input[0].type.tensor_type.shape.dim[1].dim_value
    latents = np.random.default_rng(0).standard_normal((16, dim), dtype=np.float32)
    for full, half in pairs(graphs, "decoder*.onnx"):
        (exact,), (rounded,) = run(full, latents), run(half, latents)
        error = ImageError.between(rounded, exact)
        assert error.psnr_db is not None
        assert error.psnr_db > 50
        assert error.max_levels <= 2


def test_weights_and_products_are_fp16_except_for_the_latent_heads(graphs: Path) -> None:
    for full_path, half_path in pairs(graphs, "*.onnx"):
        graph = onnx.load(half_path).graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
        heads = {value.name for value in graph.output if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        for node in graph.node:
            if node.op_type in WEIGHTED:
                head = node.output[0] in heads
                found = {kinds[name] for name in node.input if name in kinds}
                assert found == {TensorProto.FLOAT if head else TensorProto.FLOAT16}, node.name
                assert node.name.startswith(KEPT) == head
        assert half_path.stat().st_size < full_path.stat().st_size


def test_levels_are_computed_in_fp32_and_named_so(graphs: Path) -> None:
    for _, path in pairs(graphs, "decoder*.onnx"):
        nodes = {node.op_type: node for node in onnx.load(path).graph.node}
        assert all(nodes[kind].name.startswith(KEPT) for kind in ("Sigmoid", "Round", "Clip"))
        assert not nodes["LeakyRelu"].name.startswith(KEPT)


def test_the_same_graph_gives_the_same_bytes(graphs: Path, tmp_path: Path) -> None:
    for full, half in pairs(graphs, "*.onnx"):
        write_half(full, tmp_path / full.name)
        assert (tmp_path / full.name).read_bytes() == half.read_bytes()


def test_what_has_no_weights_stays_exact(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        write_half(tiny_bundle / name, tmp_path / name)
    exact = OnnxRuntimeBackend(tiny_bundle / "encoder.onnx", tiny_bundle / "decoder.onnx", Options(threads=1))
    half = OnnxRuntimeBackend(tmp_path / "encoder.onnx", tmp_path / "decoder.onnx", Options(threads=1))
    images = np.arange(256 * 192, dtype=np.uint32).astype(np.uint8).reshape(256, 8, 8, 3)  # every level, every place
    for mine, truth in zip(half.encode(images), exact.encode(images), strict=True):
        np.testing.assert_array_equal(mine, truth)
    latents = exact.encode(images)[0] * 1.5 - 60.3
    np.testing.assert_array_equal(half.decode(latents), exact.decode(latents))


def test_weights_beyond_fp16_are_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / write_decoder(small_vae(), "plain", tmp_path, "ab" * 32)
    model = onnx.load(source)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "decoder.to_rgb.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.full(3, 7e4, np.float32), tensor.name))
    onnx.save(model, source)
    with pytest.raises(InputError, match=r"decoder\.to_rgb\.bias reach 70000, FP16 ends at 65504.*--precision fp32"):
        write_half(source, tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()
