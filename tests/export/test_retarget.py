import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builds import FLAGS, WIDE, plain, silent
from bundles import reseal, spoil
from runs import write_run
from scripts import require_refused
from servers import run_python

from engine.backends import open_backend
from engine.bundle import Bundle
from engine.errors import BundleError, ParityError
from engine.proof.figures import TOLERANCES
from export import retarget
from export.build_engines import build
from export.errors import InputError
from export.retarget import RetargetConfig


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every form, that no test changes; there is no run any more."""
    folder = tmp_path_factory.mktemp("retarget")
    run = write_run(folder / "run", samples=3)
    built = build(plain(run=run, out=folder / "bundle", max_batch=3, all_forms=True), silent)
    shutil.rmtree(run)
    return built


@pytest.fixture
def spoilt(source: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(source, tmp_path / "bundle"))


def make(source: Path, out: Path, **flags: Any) -> Bundle:
    config = RetargetConfig(bundle=source, out=out, threads=1, **flags)
    return Bundle.load(retarget.retarget(config, silent))


def test_all_forms_are_kept_when_asked(source: Path) -> None:
    names = {name for name in Bundle.load(source).manifest.files if name.endswith(".onnx")}
    decoders = {"decoder.onnx", "decoder.tail.onnx", "decoder.phases.onnx"}
    assert names == {"encoder.onnx", "encoder.product.onnx", *decoders}


def test_another_backend_from_the_bundle_alone(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    flags = {"backend": "openvino", "precision": "fp32", "decoder": "tail", "split": "no"}
    bundle = make(source, tmp_path / "new", **flags, encoder="plain", max_batch=2)
    old, new = Bundle.load(source).manifest, bundle.manifest
    assert (new.backend, new.precision, new.max_batch_size) == ("openvino", "fp32", 2)
    assert (new.engine.encoder, new.engine.decoder) == ("encoder.onnx", "decoder.tail.onnx")
    assert list(new.parity["stages"]) == ["portable", "rewritten", "engine"]
    assert new.parity["truth"] == "PyTorch eager FP32"
    assert new.proof["status"] == "proven"
    assert "openvino" in new.proof["machine"]
    assert new.files == old.files
    assert (new.run, new.attributes, new.preprocessing) == (old.run, old.attributes, old.preprocessing)
    assert {**old.versions, **new.versions} == new.versions
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_was_retargeted_can_be_retargeted_again(source: Path, tmp_path: Path) -> None:
    named = {"backend": "onnxruntime", "precision": "fp32", "encoder": "product", "decoder": "phases"}
    first = make(source, tmp_path / "first", **named)
    again = make(first.path, tmp_path / "again", **{**named, "encoder": "plain", "decoder": "plain", "split": "no"})
    assert again.manifest.files == Bundle.load(source).manifest.files
    assert again.manifest.engine.stages == {}


def test_a_plan_for_another_machine_is_unproven(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU here")
    bundle = make(source, tmp_path / "new", backend="tensorrt-rtx", precision="fp16", **WIDE)
    manifest = bundle.manifest
    assert (manifest.engine.encoder, manifest.engine.decoder) == ("encoder.fp16.rtx.plan", "decoder.fp16.rtx.plan")
    assert list(manifest.parity["stages"]) == ["portable", "reduced"]
    assert manifest.proof["status"] == "unproven"
    assert manifest.proof["tolerances"]["latents"] == 9.0


def test_auto_chooses_among_the_forms_that_are_there(source: Path, tmp_path: Path) -> None:
    bundle = make(source, tmp_path / "new", backend="onnxruntime", precision="fp32", encoder="plain")
    decoders = [entry["decoder"] for entry in bundle.manifest.engine.chosen["candidates"]]
    assert sorted(decoders) == ["phases", "plain", "tail"]


def test_int8_is_calibrated_on_what_the_model_draws(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    named: dict[str, Any] = {"backend": "onnxruntime", "precision": "int8", "decoder": "tail"}
    first, again = (make(source, tmp_path / name, **named, **WIDE) for name in ("first", "again"))
    assert first.manifest.engine.stages["reduced"] == ("encoder.int8.onnx", "decoder.tail.int8.onnx")
    assert first.manifest.proof["status"] == "proven"
    assert first.manifest.files == again.manifest.files


def test_within_a_budget_int8_joins_the_contest(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    bundle = make(source, tmp_path / "new", backend="onnxruntime", encoder="plain", decoder="plain", **WIDE)
    candidates = bundle.manifest.engine.chosen["candidates"]
    assert sorted(entry["precision"] for entry in candidates) == ["fp32", "int8"]


def test_a_form_that_the_bundle_lacks(spoilt: Path, tmp_path: Path) -> None:
    values = json.loads((spoilt / "manifest.json").read_text())
    del values["files"]["decoder.tail.onnx"]
    (spoilt / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"has no decoder\.tail\.onnx, and exact forms are traced from the run; "):
        make(spoilt, tmp_path / "new", backend="onnxruntime", encoder="plain", decoder="tail")


def test_a_wrong_graph_is_found_out(spoilt: Path, tmp_path: Path) -> None:
    spoil(spoilt / "decoder.onnx")
    reseal(spoilt)
    with pytest.raises(ParityError, match=r"^stage portable \(encoder\.onnx and decoder\.onnx by onnxruntime in "):
        make(spoilt, tmp_path / "new", backend="onnxruntime")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("flags", [("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("tensorrt-rtx", "fp16")])
def test_a_file_that_is_no_graph_is_named(spoilt: Path, tmp_path: Path, flags: tuple[str, str]) -> None:
    (spoilt / "decoder.tail.onnx").write_bytes((spoilt / "decoder.tail.onnx").read_bytes()[:500])
    reseal(spoilt)
    with pytest.raises(
        BundleError, match=rf"{spoilt}/decoder\.tail\.onnx is no ONNX graph \(.*; build the bundle again"
    ):
        make(spoilt, tmp_path / "new", backend=flags[0], precision=flags[1], encoder="plain", decoder="tail")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_bundles_that_cannot_be_started_from(spoilt: Path, tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(InputError, match=r"BUNDLE .*: lies in --out"):
            make(spoilt, spoilt, force=force)
    with pytest.raises(BundleError, match="no bundle folder at"):
        make(tmp_path / "nowhere", tmp_path / "new")
    (spoilt / "proof.safetensors").write_bytes(b"torn")
    with pytest.raises(BundleError, match=r"proof\.safetensors was changed after it was built: its SHA-256 is "):
        make(spoilt, tmp_path / "new")
    reseal(spoilt)
    with pytest.raises(BundleError, match=r"proof\.safetensors can't be read as a proof .*; build it again"):
        make(spoilt, tmp_path / "new")
    values = json.loads((spoilt / "manifest.json").read_text())
    del values["files"]["proof.safetensors"]
    (spoilt / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"does not list proof\.safetensors; build it with"):
        make(spoilt, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("flags", [("onnxruntime", "fp32"), ("openvino", "bf16"), ("tensorrt-rtx", "fp16")])
def test_no_torch_is_needed(source: Path, tmp_path: Path, flags: tuple[str, str]) -> None:
    wide = [part for name, value in WIDE.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    named = ["--backend", flags[0], "--precision", flags[1], "--encoder", "plain", "--decoder", "plain"]
    arguments = ["-m", "export.retarget", str(source), "--out", str(tmp_path / "new"), "--threads", "1", *named, *wide]
    result = run_python(arguments, tmp_path, without=("torch", "torchvision"))
    if "not supported" in result.stderr:
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    assert f", {flags[0]} {flags[1]}, encoder." in result.stdout
    assert Bundle.load(tmp_path / "new").manifest.precision == flags[1]


def test_without_onnx_runtime_the_extra_is_named(source: Path, tmp_path: Path) -> None:
    for command in (["export.retarget", str(source)], ["export.build_engines", "--run", str(source)]):
        arguments = ["-m", *command, "--out", str(tmp_path / "new"), "--backend", "openvino"]
        result = run_python(arguments, tmp_path, without=("onnxruntime",))
        require_refused(result, "ONNX Runtime can't be imported")
        assert result.stderr.endswith("; pip install 'dfc-vae[cpu]'\n")


def test_the_command_serves_what_it_made(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert retarget.main([str(source), "--out", str(out), *FLAGS]) == 0
    assert capsys.readouterr().out.endswith(f"next: python -m engine --bundle {out}\n")
    assert Bundle.load(out).manifest.proof["tolerances"]["psnr_db"] == TOLERANCES["fp32"].psnr_db
    open_backend(Bundle.load(out), 1)
    assert retarget.main([str(source), "--out", str(out), *FLAGS]) == 2
    assert "holds a bundle already; add --force" in capsys.readouterr().err
