import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builds import FLAGS, plain, silent
from runs import ATTRIBUTES, LATENT_DIM, PRIVATE_PATH, smooth_images, write_run
from scripts import Result

from engine.backends import open_backend
from engine.bundle import Bundle, Engine, sha256_of
from engine.errors import ParityError
from engine.proof.figures import TOLERANCES, Tolerances
from engine.proof.machine import machine_of
from export.build_engines import BuildConfig, build
from export.command import interruptible
from export.engines.candidate import Candidate, Option
from export.engines.contest import Entry
from export.engines.support import Support
from export.errors import InputError
from export.graphs.names import DecoderForm
from export.graphs.trace import write_decoder
from framing import CELEBA_LANDMARKS, CELEBA_SOURCE, Frame
from trainer.model import VAE

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def shared_bundle(shared_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `shared_run`, that no test changes."""
    return build(plain(run=shared_run, out=tmp_path_factory.mktemp("built") / "bundle", max_batch=4), silent)


@pytest.fixture
def bundle(shared_bundle: Path, tmp_path: Path) -> Path:
    """A bundle folder for one test to spoil."""
    return Path(shutil.copytree(shared_bundle, tmp_path / "place" / "bundle"))


def corrupt_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of the decoder goes wrong between the export and the check."""

    def write_then_corrupt(model: VAE, form: DecoderForm, folder: Path, model_sha256: str) -> str:
        name = write_decoder(model, form, folder, model_sha256)
        graph = onnx.load(folder / name)
        weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "decoder.to_rgb.bias")
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0] += 0.5
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(graph, folder / name)
        return name

    monkeypatch.setattr("export.graphs.trace.write_decoder", write_then_corrupt)


# What is built


def test_bundle_is_complete_and_says_what_it_is(shared_bundle: Path, shared_run: Path) -> None:
    manifest = Bundle.load(shared_bundle).manifest
    assert sorted(path.name for path in shared_bundle.iterdir()) == [
        "decoder.onnx",
        "directions.safetensors",
        "encoder.onnx",
        "manifest.json",
        "prior.safetensors",
        "proof.safetensors",
    ]
    assert (manifest.image_size, manifest.latent_dim, manifest.max_batch_size) == (64, LATENT_DIM, 4)
    assert (manifest.backend, manifest.precision, manifest.engine) == ("onnxruntime", "fp32", Engine())
    assert manifest.frame == Frame(64, 148, CELEBA_SOURCE, CELEBA_LANDMARKS)
    assert manifest.attributes == ATTRIBUTES
    assert manifest.files == {name: sha256_of(shared_bundle / name) for name in manifest.files}
    assert manifest.run == {
        "preset": "plain",
        "steps": 7,
        "model_sha256": sha256_of(shared_run / "model.safetensors"),
        "data": {"fingerprint": None, "images": {"train": 90}},
    }
    assert {"python", "torch", "onnx", "onnxruntime", "dfc-vae"} <= set(manifest.versions)
    assert manifest.parity["truth"] == "PyTorch eager FP32"
    assert manifest.parity["samples"] == 11
    stages = manifest.parity["stages"]
    assert list(stages) == ["portable", "engine", "proof"]
    assert stages["engine"]["tolerances"] == asdict(TOLERANCES["fp32"]) == manifest.proof["tolerances"]
    assert manifest.proof["status"] == "proven"
    assert manifest.proof["machine"] == machine_of(manifest)
    assert manifest.parity["judge"].startswith("skipped: the run has no classifier.safetensors")
    assert stages["engine"]["judged"] is None
    assert stages["engine"]["latents"]["mu"]["max_relative"] <= 2e-4
    assert stages["engine"]["images"]["edit"]["max_levels"] <= 1


def test_bundle_keeps_no_path_of_the_machine(shared_bundle: Path) -> None:
    for file in shared_bundle.iterdir():
        content = file.read_bytes()
        assert PRIVATE_PATH.encode() not in content
        assert str(shared_bundle.parent).encode() not in content


def test_bundle_is_readable_for_others(shared_bundle: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in shared_bundle.iterdir()} == {0o666 & ~umask}
    assert shared_bundle.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("count", [1, 2, 7])
def test_engine_takes_any_batch(shared_bundle: Path, count: int) -> None:
    engine = open_backend(Bundle.load(shared_bundle), threads=1)
    mu, log_var = engine.encode(smooth_images(count, 64))
    images = engine.decode(mu)
    assert mu.shape == log_var.shape == (count, LATENT_DIM)
    assert mu.dtype == log_var.dtype == np.float32
    assert images.shape == (count, 64, 64, 3)
    assert images.dtype == np.uint8


def test_128_pixels(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", image_size=128, samples=4)
    bundle = Bundle.load(build(plain(run=run, out=tmp_path / "bundle"), silent))
    assert bundle.manifest.image_size == 128
    assert open_backend(bundle).decode(np.zeros((3, LATENT_DIM), np.float32)).shape == (3, 128, 128, 3)


def test_command_builds_the_same_bytes_and_shows_parity(shared_run: Path, shared_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bundle"
    result = subprocess.run(
        [sys.executable, "-m", "export.build_engines", *FLAGS, "--run", shared_run, "--out", out, "--max-batch", "4"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "decode of N(0, I)" in result.stdout
    for name in ("encoder.onnx", "decoder.onnx", "directions.safetensors"):
        assert (out / name).read_bytes() == (shared_bundle / name).read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_images_that_were_cropped_already(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["config"]["crop"] = 0
    (run / "config.json").write_text(json.dumps(config))
    bundle = Bundle.load(build(plain(run=run, out=tmp_path / "bundle"), silent))
    assert bundle.manifest.frame == Frame(64)


# The gate


def test_impossible_tolerance_is_refused(command: Command, shared_run: Path, tmp_path: Path) -> None:
    arguments = ("--latent-tolerance", "1e-12", "--level-tolerance", "0")
    result = command("--run", shared_run, "--out", tmp_path / "bundle", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: stage portable (encoder.onnx and decoder.onnx by onnxruntime in fp32 on cpu) differs from "
        "PyTorch eager FP32: mu is off by "
    )
    assert "(tolerance 1.00e-12)" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "FAIL" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_engine_with_one_wrong_weight_is_refused(
    shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt_decoder(monkeypatch)
    lines: list[str] = []
    with pytest.raises(ParityError, match=r"decode of mu is off by up to \d+ of 255 levels \(tolerance 1\)"):
        build(plain(run=shared_run, out=tmp_path / "bundle"), lines.append)
    assert list(tmp_path.iterdir()) == []
    assert lines[-1].count("FAIL") == 4


def test_wider_tolerances_are_the_users_choice_and_recorded(
    shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt_decoder(monkeypatch)
    wide = {"level_tolerance": 255, "min_psnr": 1.0, "mean_tolerance": 99.0, "bias_tolerance": 98.0}
    config = plain(run=shared_run, out=tmp_path / "bundle", latent_tolerance=0.5, logit_tolerance=0.2, **wide)
    manifest = Bundle.load(build(config, silent)).manifest
    parity = manifest.parity
    assert parity["stages"]["engine"]["tolerances"] == manifest.proof["tolerances"]
    assert manifest.proof["tolerances"] == {
        "latents": 0.5,
        "levels": 255,
        "psnr_db": 1.0,
        "mean_levels": 99.0,
        "bias_levels": 98.0,
        "logits": 0.2,
    }
    assert parity["stages"]["engine"]["images"]["decode"]["max_levels"] > 1


def test_a_failed_build_leaves_the_old_bundle(run: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    corrupt_decoder(monkeypatch)
    with pytest.raises(ParityError):
        build(plain(run=run, out=bundle, force=True), silent)
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before
    assert list(bundle.parent.iterdir()) == [bundle]


# What is chosen


def test_named_rewrites_are_built_beside_the_portable_graphs(
    shared_run: Path, shared_bundle: Path, tmp_path: Path
) -> None:
    config = plain(run=shared_run, out=tmp_path / "bundle", encoder="product", decoder="phases")
    bundle = Bundle.load(build(config, silent))
    names = ("encoder.product.onnx", "decoder.phases.onnx")
    assert bundle.manifest.engine == Engine(*names, stages={"rewritten": names})
    assert list(bundle.manifest.parity["stages"]) == ["portable", "rewritten", "engine", "proof"]
    assert set(bundle.manifest.files) == {
        "encoder.onnx",
        "encoder.product.onnx",
        "decoder.onnx",
        "decoder.phases.onnx",
        "directions.safetensors",
        "prior.safetensors",
        "proof.safetensors",
    }
    for name in ("encoder.onnx", "decoder.onnx"):
        assert (bundle.path / name).read_bytes() == (shared_bundle / name).read_bytes()
    assert open_backend(bundle, threads=1).decode(np.zeros((3, LATENT_DIM), np.float32)).shape == (3, 64, 64, 3)


def test_auto_holds_a_contest_and_records_it(shared_run: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = plain(run=shared_run, out=tmp_path / "bundle", encoder="auto", decoder="auto", max_batch=2, threads=1)
    bundle = Bundle.load(build(config, lines.append))
    chosen = bundle.manifest.engine.chosen
    assert "product of the times of an edit at batch 1" in chosen["rule"]
    assert chosen["threads"] == 1
    assert len(chosen["candidates"]) == 6
    best = chosen["candidates"][0]
    assert (best["backend"], best["precision"], best["rejected"]) == ("onnxruntime", "fp32", None)
    assert set(best["edit_ms"]) == {"1", "2"}
    kept = {name for name in bundle.manifest.files if name.endswith(".onnx")}
    engine = bundle.manifest.engine
    assert kept == {"encoder.onnx", "decoder.onnx", engine.encoder, engine.decoder}
    assert lines[-2].endswith(f"{engine.encoder} and {engine.decoder}")
    assert lines[-1] == f"next: python -m engine --bundle {bundle.path}"
    assert any(line.startswith("contest by ") for line in lines)


def test_the_fastest_that_passes_the_gate_is_built(
    shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Option("openvino", "cpu", "bf16") not in Support.find().here:
        pytest.skip("this machine has no bf16")

    def bf16_first(candidates: Sequence[Candidate], *_: object, **__: object) -> list[Entry]:
        return [Entry(candidate, {1: 1.0}) for candidate in sorted(candidates, key=lambda each: each.precision)]

    monkeypatch.setattr("export.bundle.assembly.rank", bf16_first)
    named: dict[str, Any] = {
        "run": shared_run,
        "encoder": "plain",
        "decoder": "plain",
        "backend": "openvino",
        "max_batch": 1,
    }
    # Random weights lose more to bf16 than trained ones.
    monkeypatch.setitem(TOLERANCES, "bf16", Tolerances(1.0, 255, 0.0, 20.0, 5.0, 1.0))
    manifest = Bundle.load(build(BuildConfig(out=tmp_path / "first", **named), silent)).manifest
    assert (manifest.backend, manifest.precision) == ("openvino", "bf16")

    # What bf16 cannot keep: it is refused, and the next one taken.
    config = BuildConfig(out=tmp_path / "second", latent_tolerance=1e-4, **named)
    manifest = Bundle.load(build(config, silent)).manifest
    assert (manifest.backend, manifest.precision) == ("openvino", "fp32")
    candidates = manifest.engine.chosen["candidates"]
    assert candidates[0]["rejected"].startswith(
        "stage engine (encoder.onnx and decoder.onnx by openvino in bf16 on cpu)"
    )
    assert candidates[1]["rejected"] is None

    with pytest.raises(ParityError, match=r"^stage engine .* by openvino in bf16"):
        build(BuildConfig(out=tmp_path / "third", latent_tolerance=1e-4, precision="bf16", **named), silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_flags_leave_candidates() -> None:
    offered = [("onnxruntime", "cpu", "fp32"), ("onnxruntime", "cuda", "fp32"), ("openvino", "cpu", "bf16")]
    support = Support([Option(*names) for names in offered])

    def candidates(**values: Any) -> list[str]:
        return [str(each) for each in BuildConfig(run=Path(), out=Path(), **values).candidates(support)]

    assert len(candidates(threads=1)) == 3 * 2 * 3
    assert len(candidates(threads=2)) == (1 + 2 * 2) * 2 * 3  # not split on a GPU
    assert len(candidates(threads=2, max_batch=1)) == 3 * 2 * 3  # nothing to split
    named = {"backend": "openvino", "precision": "bf16", "encoder": "product", "decoder": "tail"}
    assert candidates(**named, split="no") == ["openvino bf16 on cpu, encoder product, decoder tail"]
    assert candidates(**named, split="yes") == [
        "openvino bf16 on cpu, encoder product, decoder tail, batches split over the threads"
    ]
    with pytest.raises(InputError, match="--split yes: batches are split over the threads of a CPU, and not by onnx"):
        candidates(backend="onnxruntime", device="cuda", split="yes")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_without_tensorrt_the_extra_is_named(
    command: Command, shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    flags = ("--backend", "tensorrt", "--precision", precision)
    result = command("--run", shared_run, "--out", tmp_path / "bundle", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: --backend tensorrt --precision {precision}: not supported (tensorrt ")
    assert "pip install 'dfc-vae[tensorrt]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


# More outputs


def test_a_triton_repository_is_written_beside(shared_run: Path, tmp_path: Path) -> None:
    config = plain(run=shared_run, out=tmp_path / "bundle", triton=tmp_path / "triton")
    build(config, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "triton"}
    assert any((tmp_path / "triton").rglob("config.pbtxt"))


# The place


def test_force_replaces_a_bundle(run: Path, bundle: Path) -> None:
    build(plain(run=run, out=bundle, max_batch=9, force=True), silent)
    assert Bundle.load(bundle).manifest.max_batch_size == 9
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_bundle_is_not_replaced_unasked(command: Command, shared_run: Path, shared_bundle: Path) -> None:
    result = command("--run", shared_run, "--out", shared_bundle)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: --out {shared_bundle}: holds a bundle already; add --force to replace it, or choose another place\n"
    )


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_a_bundle_is_never_replaced(shared_run: Path, tmp_path: Path, force: bool) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"chapters": 7}')
    with pytest.raises(InputError, match="thesis: exists and is not a bundle"):
        build(plain(run=shared_run, out=folder, force=force), silent)
    assert (folder / "manifest.json").read_text() == '{"chapters": 7}'


def test_force_does_not_delete_what_lies_beside_a_bundle(run: Path, bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"beside the bundle it holds notes\.txt"):
        build(plain(run=run, out=bundle, force=True), silent)
    assert (bundle / "notes.txt").read_text() == "mine"


# The flags


def test_dry_run_prints_the_resolved_configuration_and_writes_nothing(
    command: Command, shared_run: Path, tmp_path: Path
) -> None:
    result = command("--run", shared_run, "--out", tmp_path / "bundle", "--dry-run")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["config"]["backend"] == "onnxruntime"
    assert plan["config"]["threads"] >= 1
    assert plan["candidates"] == ["onnxruntime fp32 on cpu, encoder plain, decoder plain"]
    assert plan["model"]["latent_dim"] == LATENT_DIM
    assert plan["attributes"] == list(ATTRIBUTES)
    assert list(tmp_path.iterdir()) == []


# Interruptions


def test_ctrl_c_leaves_nothing(
    command: Command, shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.proof.reference.Truth.of", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    result = command("--run", shared_run, "--out", tmp_path / "bundle")
    assert (result.returncode, result.stderr) == (130, "error: interrupted; no bundle was written\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("command")  # which brings the handlers back
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_from_the_start_stays_ignored(signum: int) -> None:
    """Such as SIGINT, in what a script starts in the background."""
    signal.signal(signum, signal.SIG_IGN)
    interrupted = interruptible()
    signal.raise_signal(signum)
    assert not interrupted()


def test_a_terminated_process_leaves_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", samples=500)  # more than a moment of parity
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "export.build_engines", "--run", run, "--out", tmp_path / "bundle"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("parity is measured"):
        assert process.poll() is None
        time.sleep(0.01)
    assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "error: interrupted; no bundle was written\n"
    assert list(tmp_path.iterdir()) == [run]
