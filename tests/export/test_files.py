"""Builds whose precision stands in the graphs: INT8 and FP16, on the CPU and for TensorRT."""

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import builds
import numpy as np
import pytest
import torch
from builds import silent
from runs import ATTRIBUTES, LATENT_DIM, smooth_images, write_run

from engine.backends import Options, open_backend
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.bundle import Bundle, Engine
from engine.errors import BackendError, ParityError
from engine.proof.figures import ImageError, Stage
from engine.proof.opening import tolerances_of
from export import verify
from export.build_engines import BuildConfig, build
from export.engines.candidate import Candidate
from export.engines.contest import Entry
from export.engines.plans import PlanBuilder
from export.errors import InputError
from export.graphs.int8 import Calibration, write_int8
from export.retarget import RetargetConfig, retarget
from export.run import Run
from trainer.evaluation.classifier import Classifier, Network
from trainer.hardware.device import Placement

WIDE: dict[str, Any] = {**builds.WIDE, "min_psnr": 15.0, "logit_tolerance": 9.0}
plain = partial(builds.plain, precision="int8")


def test_calibrating_halves_the_images_and_nothing_else_does(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "run", samples=5))
    images = run.samples
    measured, calibrated = run.split_samples(calibrates=True)
    np.testing.assert_array_equal(measured, images[[1, 3]])
    np.testing.assert_array_equal(calibrated, images[[0, 2, 4]])
    measured, calibrated = run.split_samples(calibrates=False)
    assert measured is images
    assert len(calibrated) == 0


@pytest.fixture(scope="module")
def int8_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with enough images to calibrate on, and a classifier."""
    pytest.importorskip("nncf")
    run = write_run(tmp_path_factory.mktemp("int8") / "run", samples=48)
    config = json.loads((run / "config.json").read_text())
    config["resolved"]["data_fingerprint"] = "abc"
    (run / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    accuracy = dict.fromkeys(ATTRIBUTES, 0.75)
    judge = Classifier(Network(3).eval(), ATTRIBUTES, accuracy, accuracy, Placement.of("cpu", "fp32"))
    judge.save(run / "classifier.safetensors", "abc")
    return run


@pytest.fixture(scope="module")
def int8_bundle(int8_run: Path) -> Path:
    """Its INT8 bundle."""
    config = plain(run=int8_run, out=int8_run.parent / "bundle", decoder="phases", **WIDE)
    return build(config, silent)


def test_int8_goes_through_every_stage(int8_bundle: Path) -> None:
    bundle = Bundle.load(int8_bundle)
    manifest = bundle.manifest
    assert (manifest.backend, manifest.precision) == ("onnxruntime", "int8")
    assert manifest.engine == Engine(
        "encoder.int8.onnx",
        "decoder.phases.int8.onnx",
        stages={
            "rewritten": ("encoder.onnx", "decoder.phases.onnx"),
            "reduced": ("encoder.int8.onnx", "decoder.phases.int8.onnx"),
        },
    )
    assert {"encoder.int8.onnx", "decoder.phases.int8.onnx", "decoder.phases.onnx"} <= set(manifest.files)
    assert list(manifest.parity["stages"]) == ["portable", "rewritten", "reduced", "engine", "proof"]
    reduced = manifest.parity["stages"]["reduced"]
    assert reduced["what"] == "encoder.int8.onnx and decoder.phases.int8.onnx by onnxruntime in int8 on cpu"
    assert 20 < reduced["images"]["decode"]["psnr_db"] < 60
    assert open_backend(bundle, threads=1).decode(np.zeros((3, LATENT_DIM), np.float32)).shape == (3, 64, 64, 3)


def test_int8_is_not_measured_on_the_images_that_it_was_calibrated_on(int8_bundle: Path) -> None:
    assert Bundle.load(int8_bundle).manifest.parity["samples"] == 24


def test_the_runs_classifier_judges_the_edits_of_every_stage(int8_bundle: Path) -> None:
    parity = Bundle.load(int8_bundle).manifest.parity
    assert parity["judge"] == ("6 edits, 0.5 to both sides, by the run's classifier (75.0% right on its test images)")
    for name, stage in parity["stages"].items():
        if name == "proof":
            assert stage["judged"] is None
        else:
            assert set(stage["judged"]["shares"]) == {f"{who} {sign}0.5" for who in ATTRIBUTES for sign in "+-"}


def test_the_same_run_gives_the_same_int8_graphs(int8_run: Path, int8_bundle: Path, tmp_path: Path) -> None:
    config = plain(run=int8_run, out=tmp_path / "again", decoder="phases", **WIDE)
    again = build(config, silent)
    for name in Bundle.load(int8_bundle).manifest.files:
        assert (again / name).read_bytes() == (int8_bundle / name).read_bytes(), name


def test_an_int8_bundle_is_verified_on_the_same_images(
    int8_run: Path, int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(int8_bundle), "--run", str(int8_run), "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "agrees with PyTorch eager FP32 on 24 images" in said
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("stage ")] == [
        "stage portable",
        "stage rewritten",
        "stage reduced",
        "stage proof",
    ]  # with ONNX Runtime, the last is the engine


def test_a_bad_int8_graph_is_named_by_its_stage(
    int8_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_steps(source: Path, target: Path, *_: object, **__: object) -> None:
        write_int8(
            source, target, Calibration(smooth_images(1, 64), np.zeros((1, LATENT_DIM), np.float32)), symmetric=False
        )

    monkeypatch.setattr("export.engines.files.write_int8", two_steps)
    with pytest.raises(
        ParityError, match=r"^stage reduced \(encoder\.int8\.onnx and decoder\.int8\.onnx by onnxruntime"
    ):
        build(plain(run=int8_run, out=tmp_path / "bundle"), silent)
    assert list(tmp_path.iterdir()) == []


def test_int8_by_openvino(int8_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    config = plain(run=int8_run, out=tmp_path / "bundle", **WIDE)
    manifest = Bundle.load(build(dataclasses.replace(config, backend="openvino", split="no"), silent)).manifest
    assert (manifest.backend, manifest.precision) == ("openvino", "int8")
    assert list(manifest.parity["stages"]) == ["portable", "reduced", "engine", "proof"]
    assert manifest.parity["stages"]["engine"]["what"].endswith("by openvino in int8 on cpu")


def test_too_few_images_for_int8(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    run = write_run(tmp_path / "run", samples=3)
    with pytest.raises(InputError, match=r"holds 3 images: int8 needs 4 .*; name another --precision"):
        build(plain(run=run, out=tmp_path / "bundle"), silent)
    with pytest.raises(InputError, match="holds 3 images: int8 needs 4"):
        build(plain(run=run, out=tmp_path / "bundle", precision="auto", min_psnr=40.0), silent)
    assert list(tmp_path.iterdir()) == [run]


def int8_first(candidates: Sequence[Candidate], *_: object, **__: object) -> list[Entry]:
    return [Entry(each, {1: 1.0}) for each in sorted(candidates, key=lambda each: each.precision != "int8")]


def test_an_engine_below_the_budget_is_out_with_its_figure(
    int8_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.bundle.assembly.rank", int8_first)
    said: list[str] = []
    config = plain(run=int8_run, out=tmp_path / "bundle", precision="auto", **{**WIDE, "min_psnr": 70.0})
    bundle = Bundle.load(build(config, said.append))
    first, second = bundle.manifest.engine.chosen["candidates"]
    assert (first["precision"], second["precision"], bundle.manifest.precision) == ("int8", "fp32", "fp32")
    assert re.search(r" has \d\d\.\d dB PSNR in image \d+ .*\(tolerance 70\)", first["rejected"])
    assert second["rejected"] is None
    assert tolerances_of(bundle).psnr_db == 70
    assert bundle.manifest.parity["samples"] == 24
    (layers,) = [text.splitlines() for text in said if text.startswith("what int8 costs single layers")]
    assert layers[0].endswith("; the worst 5 of 14")
    assert len(layers) == 1 + 5


def test_the_fastest_engine_within_the_budget_wins(
    int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.bundle.assembly.rank", int8_first)
    named: dict[str, Any] = {"backend": "onnxruntime", "encoder": "plain", "decoder": "phases", "threads": 1}
    config = RetargetConfig(bundle=int8_bundle, out=tmp_path / "bundle", explain=True, **named, **WIDE)
    said: list[str] = []
    bundle = Bundle.load(retarget(config, said.append))
    assert bundle.manifest.precision == "int8"
    assert tolerances_of(bundle).psnr_db == WIDE["min_psnr"]
    assert sum(text.startswith("what int8 costs single layers") for text in said) == 1


def test_the_budget_decides_and_not_single_pixels(tmp_path: Path) -> None:
    reference = np.full((2, 64, 64, 3), 100, np.uint8)
    images = reference.copy()
    images[0, :4, :4] += 24  # an edge: 44.6 dB
    edit = {"edit": ImageError.between(images, reference)}

    def failures(precision: str, **flags: Any) -> str:
        tolerances = BuildConfig(run=tmp_path, out=tmp_path, **flags).tolerances(precision)
        return "; ".join(Stage("it", tolerances, {}, edit).failures())

    assert "is off by up to 24 of 255 levels (tolerance 12)" in failures("bf16")
    assert failures("bf16", min_psnr=40.0) == failures("fp16", min_psnr=40.0) == ""
    assert failures("bf16", min_psnr=45.0) == "edit has 44.6 dB PSNR in row 0 (tolerance 45)"
    assert "(tolerance 8)" in failures("bf16", min_psnr=40.0, level_tolerance=8)
    assert "is off by up to 24 of 255 levels (tolerance 1)" in failures("fp32", min_psnr=40.0)


@pytest.fixture
def stand_in_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """TensorRT played by ONNX Runtime: a plan is a copy of its graph. Gives the names of the plans that were built."""
    built = []

    def build_plan(builder: PlanBuilder, graph: Path, plan: Path, **_: object) -> object:
        shutil.copyfile(graph, plan)
        builder.timing_cache.write_text("times")
        built.append(plan.name)
        return {"graph": graph.name, "max_batch": builder.max_batch}

    def require_device(backend: str = "tensorrt", device: str = "cuda") -> dict[str, str]:
        if backend != "tensorrt":
            raise BackendError("not here")
        return {"tensorrt": "8.6.0", "gpu": "stand-in", "compute_capability": "9.0"}

    class StandIn(OnnxRuntimeBackend):
        def __init__(self, encoder: Path, decoder: Path, _: Options) -> None:
            super().__init__(encoder, decoder, Options(threads=1))

        @classmethod
        def check(cls, options: Options) -> None:
            if options.backend == "tensorrt-rtx":
                raise BackendError("not here")

    monkeypatch.setattr("engine.backends.tensorrt.require_device", require_device)
    monkeypatch.setattr(PlanBuilder, "build", build_plan)
    monkeypatch.setattr("engine.backends.tensorrt.TensorRtBackend", StandIn)
    return built


def test_tensorrt_serves_plans_made_from_fp16_graphs(shared_run: Path, tmp_path: Path, stand_in_gpu: list[str]) -> None:
    config = plain(run=shared_run, out=tmp_path / "bundle", decoder="tail", max_batch=4, **WIDE)
    bundle = Bundle.load(build(dataclasses.replace(config, backend="tensorrt", precision="fp16"), silent))
    manifest = bundle.manifest
    assert stand_in_gpu == ["encoder.fp16.plan", "decoder.tail.fp16.plan", "edit.tail.fp16.plan"]
    assert manifest.engine == Engine(
        "encoder.fp16.plan",
        "decoder.tail.fp16.plan",
        stages={
            "rewritten": ("encoder.onnx", "decoder.tail.onnx"),
            "reduced": ("encoder.fp16.onnx", "decoder.tail.fp16.onnx"),
        },
        edit="edit.tail.fp16.plan",
    )
    assert "edit.tail.fp16.plan" in manifest.files
    assert not [name for name in manifest.files if name.startswith("edit.") and name.endswith(".onnx")]
    assert list(manifest.parity["stages"]) == ["portable", "rewritten", "reduced", "engine", "proof"]
    assert manifest.parity["stages"]["reduced"]["what"].endswith("by onnxruntime in fp16 on cpu")
    more = {"compute_capability": "9.0", "hardware_compatibility": "none"}
    assert manifest.tensorrt == {
        "device": {"tensorrt": "8.6.0", "gpu": "stand-in", **more},
        "builder": {
            "encoder.fp16.plan": {"graph": "encoder.fp16.onnx", "max_batch": 4},
            "decoder.tail.fp16.plan": {"graph": "decoder.tail.fp16.onnx", "max_batch": 4},
            "edit.tail.fp16.plan": {"graph": "encoder.fp16.onnx + decoder.tail.fp16.onnx", "max_batch": 4},
        },
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.timing.cache"]


def test_only_the_winners_plans_stay(shared_run: Path, tmp_path: Path, stand_in_gpu: list[str]) -> None:
    config = BuildConfig(
        run=shared_run, out=tmp_path / "bundle", backend="tensorrt", precision="fp16", max_batch=2, threads=1, **WIDE
    )
    manifest = Bundle.load(build(config, silent)).manifest
    assert len(stand_in_gpu) == len(set(stand_in_gpu)) == 6
    assert {name for name in manifest.files if name.endswith(".plan")} == {
        manifest.engine.encoder,
        manifest.engine.decoder,
        manifest.engine.edit,
    }


def test_a_plan_that_is_refused_takes_only_its_candidates_out(
    shared_run: Path, tmp_path: Path, stand_in_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = PlanBuilder.build

    def refuse_tails(builder: PlanBuilder, graph: Path, plan: Path, **settings: Any) -> Any:
        if "tail" in graph.name:
            raise BackendError(f"TensorRT can't build {graph.name}: too long")
        return copy(builder, graph, plan, **settings)

    monkeypatch.setattr(PlanBuilder, "build", refuse_tails)
    said: list[str] = []
    config = plain(run=shared_run, out=tmp_path / "bundle", backend="tensorrt", precision="fp16", max_batch=2, **WIDE)
    manifest = Bundle.load(build(dataclasses.replace(config, decoder="auto"), said.append)).manifest
    assert {entry["decoder"] for entry in manifest.engine.chosen["candidates"]} == {"plain", "phases"}
    assert "decoder.tail.fp16.plan is out: TensorRT can't build decoder.tail.fp16.onnx: too long" in said
    with pytest.raises(BackendError, match=r"can't build decoder\.tail\.fp16\.onnx: too long"):
        build(dataclasses.replace(config, out=tmp_path / "other", decoder="tail"), print)
    assert not (tmp_path / "other").exists()
