import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import plain, silent
from bundles import reseal, spoil
from runs import write_run
from scripts import Result, call, require_refused
from servers import run_python

from export import verify
from export.build_engines import build


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("verify") / "run", samples=5)


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    return build(plain(run=run, out=run.parent / "bundle", max_batch=3, encoder="product", decoder="phases"), silent)


Command = Callable[..., Result]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return lambda *arguments: call(verify.main, capsys, "--threads", "1", *arguments)


def test_with_the_run_everything_is_measured_again(command: Command, run: Path, bundle: Path, tmp_path: Path) -> None:
    result = command(bundle, "--run", run, "--json", tmp_path / "parity.json")
    assert result.returncode == 0, result.stderr
    agrees, following = result.stdout.splitlines()[-2:]
    assert agrees.endswith("agrees with PyTorch eager FP32 on 5 images and as many random latents")
    assert following == f"next: python -m engine --bundle {bundle}"
    figures = json.loads((tmp_path / "parity.json").read_text())
    assert list(figures["stages"]) == ["portable", "rewritten", "engine", "proof"]
    exported = json.loads((bundle / "manifest.json").read_text())["parity"]
    assert figures["stages"]["engine"]["tolerances"] == exported["stages"]["engine"]["tolerances"]


def test_without_the_run_the_bundle_proves_itself(command: Command, bundle: Path) -> None:
    result = command(bundle)
    assert result.returncode == 0, result.stderr
    for stage in ("portable", "rewritten"):
        assert f"stage {stage}: " in result.stdout
    assert "stage proof" not in result.stdout
    assert "agrees with PyTorch eager FP32 on 8 images and as many random latents\n" in result.stdout


@pytest.mark.parametrize("with_run", [True, False])
def test_a_wrong_engine_is_exit_code_1(
    command: Command, run: Path, bundle: Path, tmp_path: Path, with_run: bool
) -> None:
    wrong = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    spoil(wrong / "decoder.phases.onnx")
    reseal(wrong)  # the manifest's blessing: only a new measurement can notice
    result = command(wrong, *(("--run", run) if with_run else ()))
    assert result.returncode == 1
    assert result.stderr.startswith("error: stage rewritten (encoder.product.onnx and decoder.phases.onnx by onnx")
    mend = f"make engines for this machine with: python -m export.retarget {wrong} --backend auto --out BUNDLE2\n"
    assert result.stderr.endswith(f"; {mend}")
    assert result.stderr.count("\n") == 1
    assert "FAIL" in result.stdout


def test_bad_input_is_one_line_and_exit_code_2(command: Command, bundle: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", image_size=32, samples=2)
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    (damaged / "decoder.onnx").write_bytes(b"")
    silent = Path(shutil.copytree(bundle, tmp_path / "silent"))
    manifest = json.loads((silent / "manifest.json").read_text())
    del manifest["files"]["proof.safetensors"]
    (silent / "manifest.json").write_text(json.dumps(manifest))
    for arguments, message in [
        ((tmp_path / "nowhere",), "no bundle folder at"),
        ((bundle, "--run", tmp_path / "nowhere"), "is not a run folder"),
        ((bundle, "--run", other), "was built from another model"),
        ((bundle, "--json", tmp_path / "no" / "file"), "there is no folder"),
        ((bundle, "--json", tmp_path), "is a folder; name a file"),
        ((bundle, "--threads", "0"), "--threads 0: must be at least 1"),
        ((bundle, "--threads", "100000"), "--threads 100000: must be at most 4096"),
        ((bundle, "--json", bundle / "manifest.json"), "which is only read; choose another place"),
        ((damaged,), "decoder.onnx was changed after it was built"),
        ((silent,), "manifest.json does not list proof.safetensors; build it with"),
    ]:
        result = command(*arguments)
        require_refused(result)
        assert message in result.stderr


def test_engines_that_cannot_run_here_are_refused_before_anything_is_measured(command: Command, bundle: Path) -> None:
    result = command(bundle, "--device", "cuda")
    require_refused(result, f"the engines of {bundle} were built and proven for cpu, not for cuda; leave --device out")
    assert result.stdout == ""


def test_without_the_run_no_torch_is_needed(bundle: Path, tmp_path: Path) -> None:
    command = ["-m", "export.verify", str(bundle), "--threads", "1"]
    result = run_python(command, tmp_path, without=("torch", "torchvision", "onnx"))
    assert result.returncode == 0, result.stderr
    assert "agrees with PyTorch eager FP32 on 8 images" in result.stdout
