import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from runs import ATTRIBUTES, FORMS, LATENT_DIM, small_vae, smooth_images

from engine.arrays import Floats
from engine.latents import Directions
from export.graphs.edit import write_edit, write_edit_by_steps, write_move
from export.graphs.fp16 import write_half
from export.graphs.names import DecoderForm, EncoderForm
from export.graphs.trace import write_decoder, write_encoder


def directions(count: int = len(ATTRIBUTES), latent_dim: int = LATENT_DIM) -> Directions:
    vectors = np.random.default_rng(0).standard_normal((count, latent_dim), dtype=np.float32)
    return Directions(ATTRIBUTES[:count], vectors, (40,) * count, (50,) * count, "train")


def strengths(count: int) -> Floats:
    return np.random.default_rng(1).uniform(-1.5, 1.5, (count, len(ATTRIBUTES))).astype(np.float32)


def write_parts(
    folder: Path, name: str = "seed-64", encoder: EncoderForm = "plain", decoder: DecoderForm = "plain"
) -> tuple[Path, Path]:
    model = small_vae(FORMS[name])
    return (
        folder / write_encoder(model, encoder, folder, "ab" * 32),
        folder / write_decoder(model, decoder, folder, "ab" * 32),
    )


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("encoder", "decoder"), [("plain", "plain"), ("product", "phases")])
def test_it_is_its_parts_one_by_one(tmp_path: Path, name: str, encoder: EncoderForm, decoder: DecoderForm) -> None:
    parts = write_parts(tmp_path, name, encoder, decoder)
    write_edit(*parts, directions(), tmp_path / "edit.onnx")
    images, asked = smooth_images(5, FORMS[name].image_size), strengths(5)
    asked[2] = 0

    mu = session(parts[0]).run(["mu"], {"images": images})[0]
    moved = mu + np.stack([directions().move(list(zip(ATTRIBUTES, row, strict=True))).step for row in asked])
    expected = session(parts[1]).run(["images"], {"latents": moved})[0]

    edited = session(tmp_path / "edit.onnx").run(["edited"], {"images": images, "strengths": asked})[0]
    assert (edited.dtype, edited.shape) == (np.uint8, images.shape)
    difference = np.abs(edited.astype(int) - expected)
    assert difference.max() <= 1  # of 255 levels: the sum of the moves is rounded in another place
    assert (difference > 0).mean() < 1e-3
    plain = session(parts[1]).run(["images"], {"latents": mu})[0]
    assert np.abs(plain.astype(int) - expected).max() > 10  # the moves are seen
    np.testing.assert_array_equal(edited[2], plain[2])


@pytest.mark.parametrize("count", [1, 3, 8])
def test_any_batch(tmp_path: Path, count: int) -> None:
    write_edit(*write_parts(tmp_path), directions(), tmp_path / "edit.onnx")
    feed = {"images": smooth_images(count, 64), "strengths": strengths(count)}
    assert session(tmp_path / "edit.onnx").run(["edited"], feed)[0].shape == (count, 64, 64, 3)


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    write_edit(*parts, directions(), tmp_path / "edit.onnx")
    graph, encoder = onnx.load(tmp_path / "edit.onnx"), onnx.load(parts[0])
    assert {value.name: shape_of(value) for value in graph.graph.input} == {
        "images": ["batch", 64, 64, 3],
        "strengths": ["batch", len(ATTRIBUTES)],
    }
    assert {value.name: shape_of(value) for value in graph.graph.output} == {"edited": ["batch", 64, 64, 3]}
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 17)]
    assert graph.ir_version == encoder.ir_version
    assert (graph.producer_name, graph.graph.name) == ("dfc-vae", "edit")
    labels = {each.key: each.value for each in graph.metadata_props}
    assert json.loads(labels.pop("attributes")) == list(ATTRIBUTES)
    assert labels == {each.key: each.value for each in encoder.metadata_props}
    assert "log_var" not in {name for node in graph.graph.node for name in node.output}


def test_same_parts_same_bytes(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    for name in ("one", "two"):
        write_edit(*parts, directions(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "one").read_bytes()


def test_the_arithmetic_alone(tmp_path: Path) -> None:
    encoder, _ = write_parts(tmp_path)
    write_move(encoder, directions(), tmp_path / "move.onnx")
    mu = np.random.default_rng(2).standard_normal((4, LATENT_DIM), dtype=np.float32)
    moved = session(tmp_path / "move.onnx").run(["latents"], {"mu": mu, "strengths": strengths(4)})[0]
    np.testing.assert_allclose(moved, mu + strengths(4) @ directions().vectors, atol=1e-5)


def shape_of(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize(("name", "half"), [("seed-64", False), ("paper-64", True)])
def test_by_steps_it_is_its_parts_one_by_one(tmp_path: Path, name: str, half: bool) -> None:
    parts = write_parts(tmp_path, name, "product", "tail")
    for part in parts if half else ():
        write_half(part, part)
    write_edit_by_steps(*parts, tmp_path / "edit.onnx")
    images, steps = smooth_images(5, FORMS[name].image_size), 3 * strengths(5) @ directions().vectors
    mu = session(parts[0]).run(["mu"], {"images": images})[0]
    expected = session(parts[1]).run(["images"], {"latents": mu + steps})[0]
    edited, found = session(tmp_path / "edit.onnx").run(["edited", "mu"], {"images": images, "steps": steps})
    np.testing.assert_array_equal(found, mu)
    np.testing.assert_array_equal(edited, expected)
    assert np.abs(edited.astype(int) - session(parts[1]).run(["images"], {"latents": mu})[0]).max() > 10
