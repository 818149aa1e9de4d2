from pathlib import Path

import numpy as np
import onnx
import pytest
from runs import ATTRIBUTES, LATENT_DIM, small_vae, smooth_images

from engine.bundle import Engine
from engine.latents import Directions
from export.errors import ParityError
from export.gate import Gate, Overrides
from export.graphs import write_decoder, write_encoder, write_graphs
from export.parity import TOLERANCES, Tolerances
from export.reference import EagerBackend
from export.truth import Truth

FILES = ("encoder.product.onnx", "decoder.phases.onnx")
REWRITTEN = Engine(*FILES, stages={"rewritten": list(FILES)})


@pytest.fixture(scope="module")
def truth() -> Truth:
    directions = Directions(ATTRIBUTES, np.eye(3, LATENT_DIM, dtype=np.float32), (20,) * 3, (20,) * 3, "train")
    return Truth("the model", EagerBackend(small_vae()), smooth_images(5, 64), directions, batch_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The graphs of a small model, for one test to spoil."""
    model = small_vae()
    write_graphs(model, tmp_path, "ab")
    write_encoder(model, "product", tmp_path, "ab")
    write_decoder(model, "phases", tmp_path, "ab")
    return tmp_path


def spoil(path: Path) -> None:
    """Adds to the bias of the colours."""
    graph = onnx.load(path)
    bias = next(tensor for tensor in graph.graph.initializer if list(tensor.dims) in ([3], [12]))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(graph, path)


def gate(folder: Path, truth: Truth, lines: list[str], overrides: Overrides | None = None) -> Gate:
    given = overrides or Overrides()
    return Gate(
        folder, truth, max_batch=4, threads=1, tolerances=lambda _, precision: given.of(precision), say=lines.append
    )


def test_every_stage_is_measured_once_and_said(folder: Path, truth: Truth) -> None:
    lines: list[str] = []
    checked = gate(folder, truth, lines)
    checked.require_portable()
    report = checked.check("onnxruntime", "fp32", REWRITTEN)
    assert list(report.stages) == ["portable", "rewritten", "engine"]
    assert report.stages["engine"] == report.stages["rewritten"]  # ONNX Runtime in FP32 is what serves
    assert [line.split(":")[0] for line in lines] == ["stage portable", "stage rewritten"]
    assert report.samples == 5
    assert report.failures() == []


def test_without_rewrites_there_is_no_such_stage(folder: Path, truth: Truth) -> None:
    report = gate(folder, truth, []).check("onnxruntime", "fp32", Engine())
    assert list(report.stages) == ["portable", "engine"]


@pytest.mark.parametrize(("file", "stage"), [("decoder.onnx", "portable"), ("decoder.phases.onnx", "rewritten")])
def test_the_stage_where_it_goes_wrong_is_named(folder: Path, truth: Truth, file: str, stage: str) -> None:
    spoil(folder / file)
    with pytest.raises(
        ParityError, match=rf"^stage {stage} .*{file} by onnxruntime in fp32 on cpu\) differs from the model"
    ):
        gate(folder, truth, []).check("onnxruntime", "fp32", REWRITTEN)


def test_an_engine_that_is_not_finite_is_named_with_its_stage(folder: Path, truth: Truth) -> None:
    graph = onnx.load(folder / "encoder.product.onnx")
    for tensor in graph.graph.initializer:
        if list(tensor.dims) == [LATENT_DIM]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(LATENT_DIM, np.nan, np.float32), tensor.name))
    onnx.save(graph, folder / "encoder.product.onnx")
    with pytest.raises(ParityError, match=r"^stage rewritten: .* not finite"):
        gate(folder, truth, []).check("onnxruntime", "fp32", REWRITTEN)


def test_overrides_replace_what_is_given_only() -> None:
    assert Overrides().of("bf16") == TOLERANCES["bf16"]
    assert Overrides(levels=9).of("fp32") == Tolerances(TOLERANCES["fp32"].latents, 9, TOLERANCES["fp32"].psnr_db)
    assert Overrides(0.0, 0, 0.0).of("bf16") == Tolerances(0.0, 0, 0.0)


def test_a_wrong_engine_passes_wider_tolerances(folder: Path, truth: Truth) -> None:
    spoil(folder / "decoder.phases.onnx")
    report = gate(folder, truth, [], Overrides(0.5, 255, 0.0)).check("onnxruntime", "fp32", REWRITTEN)
    assert report.stages["engine"].images["decode"].max_levels > 1


def test_openvino_is_the_last_stage(folder: Path, truth: Truth) -> None:
    pytest.importorskip("openvino")
    lines: list[str] = []
    report = gate(folder, truth, lines).check("openvino", "fp32", REWRITTEN)
    assert list(report.stages) == ["portable", "rewritten", "engine"]
    assert report.stages["engine"].what == "encoder.product.onnx and decoder.phases.onnx by openvino in fp32 on cpu"
    assert len(lines) == 3
