"""Face recognition networks that are made up: their descriptor is the colour of the picture's piece at some places."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trainer.errors import ConfigError
from trainer.evaluation.identity import LAYOUTS, Layout, recogniser, similarity
from trainer.evaluation.reconstruction import identity_kept
from trainer.evaluation.skipped import SkippedError


def network(path: Path, side: int, batch: int | str = "n", wide: int = 128) -> Path:
    """Random weights on the picture brought down to 8x8, levels centred: (batch, 3, side, side) to (batch, wide)."""
    random = np.random.default_rng(0)
    weights = numpy_helper.from_array(random.standard_normal((192, wide)).astype(np.float32), "w")
    middle = numpy_helper.from_array(np.array(127.5, np.float32), "middle")
    pool = side // 8
    nodes = [
        helper.make_node("AveragePool", ["x"], ["pooled"], kernel_shape=[pool, pool], strides=[pool, pool]),
        helper.make_node("Slice", ["pooled", "from", "to"], ["cut"]),
        helper.make_node("Sub", ["cut", "middle"], ["centred"]),
        helper.make_node("Flatten", ["centred"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    starts, ends = (numpy_helper.from_array(np.array([0, 0, at, at]), name) for at, name in ((0, "from"), (8, "to")))
    ends = numpy_helper.from_array(np.array([10**6, 3, 8, 8]), "to")
    graph = helper.make_graph(
        nodes,
        "made up",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, wide])],
        [weights, middle, starts, ends],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def pictures(count: int, seed: int = 0, side: int = 64) -> npt.NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return coarse.repeat(side // 8, 1).repeat(side // 8, 2)


@pytest.mark.parametrize(("layout", "batch"), [(LAYOUTS[0], "n"), (LAYOUTS[1], 1), (LAYOUTS[1], 3)])
def test_the_same_faces_are_alike_and_others_are_not(layout: Layout, batch: int | str, tmp_path: Path) -> None:
    found, description, _ = recogniser(network(tmp_path / "net.onnx", layout.side, batch))
    assert found.layout == layout
    assert "net.onnx" in description
    faces = pictures(5)
    noisy = (faces.astype(int) + np.random.default_rng(1).integers(-20, 21, faces.shape)).clip(0, 255).astype(np.uint8)
    assert np.allclose(similarity(found, faces, faces), 1, atol=1e-5)
    assert similarity(found, faces, noisy).min() > 0.95
    assert similarity(found, faces, pictures(5, seed=2)).max() < 0.6
    assert np.allclose(found.describe(faces)[3:4], found.describe(faces[3:4]), atol=1e-5)
    kept = identity_kept(found, faces, noisy)
    assert kept["similarity"] > 0.95
    assert kept["different_faces"] < 0.6
    assert kept["images"] == 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eyes_lie_where_the_network_was_trained_to_have_them(layout: Layout, tmp_path: Path) -> None:
    """CelebA's eyes, in the middle 148 of 178x218 pixels, against dlib's chips and ArcFace's template."""
    found, *_ = recogniser(network(tmp_path / "net.onnx", layout.side))
    image = np.zeros((1, 148, 148, 3), np.uint8)
    for column, row in ((70, 112), (108, 112)):
        image[0, row - 35 - 1 : row - 35 + 2, column - 15 - 1 : column - 15 + 2] = 255
    chip = found._chips(image)[0, 0]
    expected = {150: ((47.7, 47.1), (100.3, 47.1)), 112: ((38.3, 51.7), (73.5, 51.5))}[chip.shape[0]]
    for half, (x, y) in zip((slice(0, chip.shape[1] // 2), slice(chip.shape[1] // 2, None)), expected, strict=True):
        weights = np.zeros_like(chip)
        weights[:, half] = chip[:, half]
        rows, columns = (np.arange(chip.shape[0]) + 0.5 for _ in range(2))
        assert (weights.sum(0) @ columns) / weights.sum() == pytest.approx(x, abs=2)
        assert (weights.sum(1) @ rows) / weights.sum() == pytest.approx(y, abs=2)


def test_what_is_no_such_network_is_refused_and_none_is_skipped(tmp_path: Path) -> None:
    with pytest.raises(SkippedError, match="give dlib's or SFace's as an ONNX file with --identity-weights"):
        recogniser(None)
    with pytest.raises(ConfigError, match=r"--identity-weights .*none.onnx: no such file"):
        recogniser(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ConfigError, match="not a network that ONNX Runtime reads"):
        recogniser(tmp_path / "text.onnx")
    with pytest.raises(ConfigError, match=r"\(N, 3, 150, 150\) to \(N, 128\), or SFace's"):
        recogniser(network(tmp_path / "large.onnx", 160))
    with pytest.raises(ConfigError, match="gives"):
        recogniser(network(tmp_path / "wide.onnx", 112, wide=512))
