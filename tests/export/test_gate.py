from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import spoil
from runs import ATTRIBUTES, LATENT_DIM, small_vae, smooth_images

from engine.bundle import Engine
from engine.errors import ParityError
from engine.latents import Directions, Gaussian
from engine.proof.figures import TOLERANCES
from engine.proof.truth import Truth
from export.engines.candidate import Option
from export.errors import RewriteError
from export.graphs.trace import write_decoder, write_encoder, write_graphs
from export.proof.gate import Gate
from export.proof.reference import EagerBackend

ORT = Option("onnxruntime", "cpu", "fp32")
FILES = ("encoder.product.onnx", "decoder.phases.onnx")
REWRITTEN = Engine(*FILES, stages={"rewritten": FILES})


PRIOR = Gaussian.standard(LATENT_DIM)


def ask(count: int) -> Truth:
    directions = Directions(ATTRIBUTES, np.eye(3, LATENT_DIM, dtype=np.float32), (20,) * 3, (20,) * 3, "train")
    return Truth.of("the model", EagerBackend(small_vae()), smooth_images(count, 64), directions, PRIOR)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return ask(5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The graphs of a small model, for one test to spoil."""
    model = small_vae()
    write_graphs(model, tmp_path, "ab")
    write_encoder(model, "product", tmp_path, "ab")
    write_decoder(model, "phases", tmp_path, "ab")
    return tmp_path


WIDE: dict[str, Any] = {"levels": 255, "psnr_db": 0.0, "mean_levels": 255.0, "bias_levels": 255.0}


def gate(folder: Path, truth: Truth, lines: list[str], proof: Truth | None = None, **wider: Any) -> Gate:
    return Gate(
        folder,
        truth,
        trial="skipped: nobody judges",
        proof=proof,
        max_batch=4,
        threads=1,
        tolerances=lambda precision: replace(TOLERANCES[precision], **wider),
        say=lines.append,
    )


def test_every_stage_is_measured_once_and_said(folder: Path, truth: Truth) -> None:
    lines: list[str] = []
    checked = gate(folder, truth, lines)
    checked.require_portable()
    report = checked.check(ORT, REWRITTEN)
    assert list(report.stages) == ["portable", "rewritten", "engine"]
    assert report.stages["engine"] == report.stages["rewritten"]  # ONNX Runtime in FP32 is what serves
    assert [line.split(":")[0] for line in lines] == ["stage portable", "stage rewritten"]
    assert report.samples == 5


def test_without_rewrites_there_is_no_such_stage(folder: Path, truth: Truth) -> None:
    report = gate(folder, truth, []).check(ORT, Engine())
    assert list(report.stages) == ["portable", "engine"]


@pytest.mark.parametrize(("file", "stage"), [("decoder.onnx", "portable"), ("decoder.phases.onnx", "rewritten")])
def test_the_stage_where_it_goes_wrong_is_named(folder: Path, truth: Truth, file: str, stage: str) -> None:
    spoil(folder / file)
    with pytest.raises(
        ParityError, match=rf"^stage {stage} .*{file} by onnxruntime in fp32 on cpu\) differs from the model"
    ):
        gate(folder, truth, []).check(ORT, REWRITTEN)


def test_an_engine_that_is_not_finite_is_named_with_its_stage(folder: Path, truth: Truth) -> None:
    graph = onnx.load(folder / "encoder.product.onnx")
    for tensor in graph.graph.initializer:
        if list(tensor.dims) == [LATENT_DIM]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(LATENT_DIM, np.nan, np.float32), tensor.name))
    onnx.save(graph, folder / "encoder.product.onnx")
    with pytest.raises(RewriteError, match=r"^stage rewritten: .* not finite"):
        gate(folder, truth, []).check(ORT, REWRITTEN)


def test_a_wrong_engine_passes_wider_tolerances(folder: Path, truth: Truth) -> None:
    spoil(folder / "decoder.phases.onnx")
    report = gate(folder, truth, [], **WIDE).check(ORT, REWRITTEN)
    assert report.stages["engine"].images["decode"].max_levels > 1


def test_openvino_is_the_last_stage(folder: Path, truth: Truth) -> None:
    pytest.importorskip("openvino")
    lines: list[str] = []
    report = gate(folder, truth, lines).check(Option("openvino", "cpu", "fp32"), REWRITTEN)
    assert list(report.stages) == ["portable", "rewritten", "engine"]
    assert report.stages["engine"].what == "encoder.product.onnx and decoder.phases.onnx by openvino in fp32 on cpu"
    assert len(lines) == 3


def test_the_proof_is_the_last_stage_and_of_what_runs(folder: Path, truth: Truth) -> None:
    report = gate(folder, truth, [], proof=ask(3)).check(ORT, REWRITTEN)
    assert list(report.stages) == ["portable", "rewritten", "engine", "proof"]
    assert report.stages["proof"].what == report.stages["engine"].what
    assert report.stages["proof"] != report.stages["engine"]
    spoil(folder / "decoder.phases.onnx")
    wide = gate(folder, truth, [], proof=ask(3), **WIDE).check(ORT, REWRITTEN, runs=False)
    assert list(wide.stages) == ["portable", "rewritten", "proof"]
    assert wide.stages["proof"].images["decode"].max_levels > 1


def test_an_exact_rewrite_that_is_not_is_a_fault_of_ours(folder: Path, truth: Truth) -> None:
    spoil(folder / "decoder.phases.onnx")
    with pytest.raises(RewriteError, match=r"^stage rewritten .*; a rewrite must be exact: a fault of export"):
        gate(folder, truth, []).check(ORT, REWRITTEN)
    spoil(folder / "decoder.onnx")
    with pytest.raises(ParityError, match=r"^stage portable ") as refusal:
        gate(folder, truth, []).check(ORT, Engine())
    assert not isinstance(refusal.value, RewriteError)
