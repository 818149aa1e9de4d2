from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from runs import small_vae, smooth_images

from export.graphs.fp16 import write_half
from export.graphs.trace import write_encoder
from export.proof.layers import costs

IMAGES = smooth_images(3, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder and its FP16 form."""
    write_encoder(small_vae(), "plain", tmp_path, "ab")
    write_half(tmp_path / "encoder.onnx", tmp_path / "encoder.fp16.onnx")
    return tmp_path


def test_every_layer_is_named_with_what_it_costs(folder: Path) -> None:
    found = costs(folder / "encoder.onnx", folder / "encoder.fp16.onnx", IMAGES)
    convolutions = [
        f"encoder.fp16.onnx: Conv /encoder/blocks/blocks.{block}/blocks.{block}.0/Conv" for block in range(5)
    ]
    heads = [f"encoder.fp16.onnx: Gemm /encoder/{name}/Gemm" for name in ("mu", "log_var")]
    assert [cost.layer for cost in found] == convolutions + heads
    assert all(1e-6 < cost.error < 2e-3 for cost in found)


def test_one_bad_layer_costs_nothing_in_those_behind_it(folder: Path) -> None:
    before = costs(folder / "encoder.onnx", folder / "encoder.fp16.onnx", IMAGES)
    model = onnx.load(folder / "encoder.fp16.onnx")
    (weights,) = [each for each in model.graph.initializer if each.name == "encoder.blocks.2.0.weight_float16"]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 2, weights.name))
    onnx.save(model, folder / "encoder.fp16.onnx")
    after = costs(folder / "encoder.onnx", folder / "encoder.fp16.onnx", IMAGES)
    assert max(after).layer.endswith("/encoder/blocks/blocks.2/blocks.2.0/Conv")
    assert max(after).error > 0.5
    assert after[:2] + after[3:] == before[:2] + before[3:]
