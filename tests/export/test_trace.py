import importlib.metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from runs import FORMS, LATENT_DIM, small_vae, smooth_images
from torch import nn

from engine.bundle import FORMAT_VERSION
from export.graphs.names import DECODER_FORMS, ENCODER_FORMS
from export.graphs.trace import write_decoder, write_encoder, write_graphs
from trainer.config import ModelConfig


@pytest.fixture(scope="module", params=list(FORMS.values()), ids=list(FORMS))
def form(request: pytest.FixtureRequest) -> ModelConfig:
    config: ModelConfig = request.param
    return config


@pytest.fixture(scope="module")
def graphs(form: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    write_graphs(small_vae(form), folder, "ab" * 32)
    return folder


def test_graphs_can_be_written_where_the_project_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.metadata.distribution

    def not_ours(name: str) -> importlib.metadata.Distribution:
        if name == "dfc-vae":
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_ours)
    graph = onnx.load(tmp_path / write_encoder(small_vae(), "plain", tmp_path, "ab" * 32))
    assert (graph.producer_name, graph.producer_version) == ("dfc-vae", "")


def signature(values: Any) -> dict[str, tuple[int, list[str | int]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


def test_inputs_and_outputs(graphs: Path, form: ModelConfig) -> None:
    size = form.image_size
    encoder, decoder = onnx.load(graphs / "encoder.onnx"), onnx.load(graphs / "decoder.onnx")
    image = (onnx.TensorProto.UINT8, ["batch", size, size, 3])
    latent = (onnx.TensorProto.FLOAT, ["batch", LATENT_DIM])
    assert signature(encoder.graph.input) == {"images": image}
    assert signature(encoder.graph.output) == {"mu": latent, "log_var": latent}
    assert signature(decoder.graph.input) == {"latents": latent}
    assert signature(decoder.graph.output) == {"images": image}


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_graph_is_lean_and_labelled(graphs: Path, name: str) -> None:
    graph = onnx.load(graphs / f"{name}.onnx")
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]
    operators = {node.op_type for node in graph.graph.node}
    assert operators.isdisjoint({"BatchNormalization", "Identity", "Shape", "Slice", "Concat", "Gather"})
    assert graph.producer_name == "dfc-vae"
    assert graph.graph.name == name
    assert {prop.key: prop.value for prop in graph.metadata_props} == {
        "bundle_format_version": str(FORMAT_VERSION),
        "model_sha256": "ab" * 32,
    }
    assert not graph.doc_string
    assert not graph.graph.doc_string
    assert not any(node.doc_string for node in graph.graph.node)
    assert not any(node.metadata_props for node in graph.graph.node)


def test_bytes_are_cast_at_the_doors_and_nowhere_else(form: ModelConfig, tmp_path: Path) -> None:
    """TensorRT takes uint8 nowhere in between."""
    model = small_vae(form)
    names = [write_encoder(model, encoder, tmp_path, "ab" * 32) for encoder in ENCODER_FORMS]
    names += [write_decoder(model, decoder, tmp_path, "ab" * 32) for decoder in DECODER_FORMS]
    for name in names:
        graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / name), strict_mode=True).graph
        doors = (*graph.input, *graph.output)
        (door,) = [value.name for value in doors if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8]
        assert [node.op_type for node in graph.node if door in (*node.input, *node.output)] == ["Cast"]
        assert all(value.type.tensor_type.elem_type != onnx.TensorProto.UINT8 for value in graph.value_info)


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_no_path_of_the_machine_in_the_file(graphs: Path, name: str) -> None:
    content = (graphs / name).read_bytes()
    assert b".py" not in content
    for place in (Path.cwd(), Path(torch.__file__).parent, graphs):
        assert str(place).encode() not in content


@pytest.mark.parametrize("count", [1, 2, 7])
@torch.no_grad()
def test_any_batch_size_gives_what_torch_gives(graphs: Path, form: ModelConfig, count: int) -> None:
    model, size = small_vae(form), form.image_size
    images = smooth_images(count, size)
    latents = np.random.default_rng(3).standard_normal((count, LATENT_DIM), dtype=np.float32)
    encoder = onnxruntime.InferenceSession(graphs / "encoder.onnx")
    decoder = onnxruntime.InferenceSession(graphs / "decoder.onnx")
    mu, log_var = encoder.run(["mu", "log_var"], {"images": images})
    decoded = decoder.run(["images"], {"latents": latents})[0]
    expected = model.encoder(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    pixels = model.decoder(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()
    assert mu.dtype == log_var.dtype == np.float32
    np.testing.assert_allclose(mu, expected.mu, atol=2e-5)
    np.testing.assert_allclose(log_var, expected.log_var, atol=2e-5)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (count, size, size, 3)
    # Within half a level of the real-valued output, and a little for rounding on either side.
    assert np.abs(decoded - pixels * 255.0).max() < 0.5 + 1e-2


def test_same_model_same_bytes(graphs: Path, form: ModelConfig, tmp_path: Path) -> None:
    write_graphs(small_vae(form), tmp_path, "ab" * 32)
    for name in ("encoder.onnx", "decoder.onnx"):
        assert (tmp_path / name).read_bytes() == (graphs / name).read_bytes()


@torch.no_grad()
@pytest.mark.parametrize(("logit", "level"), [(0.0, 128), (100.0, 255), (-100.0, 0)])
def test_levels_are_rounded_and_never_wrap(tmp_path: Path, logit: float, level: int) -> None:
    model = small_vae()
    model.decoder.to_rgb.weight.zero_()
    nn.init.constant_(cast(torch.Tensor, model.decoder.to_rgb.bias), logit)  # 127.5 levels at logit 0
    write_graphs(model, tmp_path, "ab" * 32)
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    images = session.run(["images"], {"latents": np.zeros((2, LATENT_DIM), np.float32)})[0]
    assert set(images.flatten()) == {level}
