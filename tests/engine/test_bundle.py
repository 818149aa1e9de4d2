import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import add_prior, reseal, write_tiny_bundle
from tiny_model import ATTRIBUTES, IMAGE_SIZE, LATENT_DIM, save_directions, tiny_directions

from engine.backends import open_backend, warmup_calls
from engine.bundle import Bundle, Manifest, sha256_of
from engine.errors import BackendError, BundleError
from engine.latents import Gaussian
from framing import CELEBA_LANDMARKS, CELEBA_SOURCE, Frame

FRAMED = {"crop": 148, "resize": "bilinear", "source": [178, 218], "landmarks": None}
ENGINE = {"encoder": "encoder.onnx", "decoder": "decoder.onnx", "split": False, "chosen": {}, "stages": {}}
REBUILD = r"python -m export\.build_engines --run RUN --out BUNDLE"
RETARGET = r"python -m export\.retarget \S+/bundle"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_whole_bundle_is_opened(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    assert (bundle.manifest.image_size, bundle.manifest.latent_dim) == (IMAGE_SIZE, LATENT_DIM)
    assert bundle.manifest.attributes == bundle.directions.names == ATTRIBUTES
    assert set(bundle.manifest.files) == {"encoder.onnx", "decoder.onnx", "directions.safetensors", "proof.safetensors"}


def test_the_manifest_survives_its_json(tiny_bundle: Path) -> None:
    manifest = Bundle.load(tiny_bundle).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_that_is_missing_or_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"no bundle folder at .*nowhere.*{REBUILD}"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=f"has no manifest.json.*{REBUILD}"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "directions.safetensors", "proof.safetensors"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing.*{REBUILD}"):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "directions.safetensors", "proof.safetensors"])
def test_one_changed_byte_is_noticed(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was changed after it was built.*{REBUILD}"):
        Bundle.load(bundle)


def test_a_truncated_directions_file_is_noticed_even_if_sealed(bundle: Path) -> None:
    path = bundle / "directions.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    reseal(bundle)
    with pytest.raises(BundleError, match=rf"directions\.safetensors can't be read.*{REBUILD}"):
        Bundle.load(bundle)


def test_directions_must_agree_with_the_manifest(bundle: Path) -> None:
    path = bundle / "directions.safetensors"
    directions = tiny_directions()
    save_directions(replace(directions, names=("Smiling", "Male", "Eyeglasses")), path)
    reseal(bundle)
    with pytest.raises(BundleError, match=r"the manifest says \['Smiling', 'Eyeglasses', 'Male'\]"):
        Bundle.load(bundle)
    save_directions(replace(directions, vectors=np.zeros((3, 7), np.float32)), path)
    reseal(bundle)
    with pytest.raises(BundleError, match="vectors of 7 values, the manifest says latent_dim 192"):
        Bundle.load(bundle)


def test_a_prior_of_other_latents_is_refused(bundle: Path) -> None:
    add_prior(bundle, Gaussian.standard(7))
    with pytest.raises(BundleError, match="latents of 7 values, the manifest says latent_dim 192"):
        Bundle.load(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, this engine reads 3 to 4.*build it with"),
        ({"format_version": None}, "format version None"),
        ({"colour": "red"}, "colour is unknown"),
        (
            {"preprocessing": {"crop": 12, "resize": "bilinear", "flip": True}},
            "preprocessing.flip is unknown",
        ),
        ({"preprocessing": {"resize": "bilinear"}}, "preprocessing.crop is missing"),
        (
            {"preprocessing": {"crop": 12, "resize": "nearest"}},
            "preprocessing.resize must be 'bilinear', not 'nearest'",
        ),
        (
            {"preprocessing": {"crop": "12", "resize": "bilinear"}},
            "preprocessing.crop must be a valid integer, not '12'",
        ),
        ({"preprocessing": {**FRAMED, "source": [178]}}, "preprocessing.source.1 is missing"),
        (
            {"preprocessing": {**FRAMED, "source": [178, True]}},
            "preprocessing.source.1 must be a valid integer, not True",
        ),
        (
            {"preprocessing": {**FRAMED, "source": [100, 218]}},
            r"have a source that crop 148 fits into, not \(100, 218\)",
        ),
        (
            {"preprocessing": {**FRAMED, "landmarks": [[1, 2]] * 4}},
            "preprocessing.landmarks must have at least 5 items, not ",
        ),
        (
            {"preprocessing": {**FRAMED, "landmarks": [[1, "2"]] * 5}},
            "preprocessing.landmarks.0.1 must be a valid number",
        ),
        ({"image_size": "64"}, "image_size must be a valid integer, not '64'"),
        ({"latent_dim": 0}, "latent_dim must be greater than or equal to 1, not 0"),
        ({"max_batch_size": 10_000_000}, "max_batch_size must be less than or equal to 4096, not 10000000"),
        ({"engine": {"encoder": "encoder.onnx"}}, "engine.decoder is missing"),
        ({"engine": {name: value for name, value in ENGINE.items() if name != "stages"}}, "engine.stages is missing"),
        ({"preprocessing": {"crop": 12}}, "preprocessing.resize is missing"),
        ({"engine": {**ENGINE, "decoder": "absent.onnx"}}, "does not list absent.onnx"),
        ({"engine": {**ENGINE, "split": 1}}, "engine.split must be a valid boolean, not 1"),
        ({"engine": {**ENGINE, "edit": 1}}, "engine.edit must be a valid string, not 1"),
        ({"engine": {**ENGINE, "edit": "edit.plan"}}, "does not list edit.plan"),
        ({"engine": {**ENGINE, "chosen": []}}, r"engine.chosen must be an object, not \[\]"),
        ({"engine": {**ENGINE, "stages": {"reduced": ["a.onnx"]}}}, "engine.stages.reduced.1 is missing"),
        ({"engine": {**ENGINE, "stages": {"reduced": ["a.onnx", "b.onnx"]}}}, "does not list a.onnx"),
        ({"tensorrt": []}, "tensorrt must be an object"),
        ({"attributes": [1]}, "attributes.0 must be a valid string, not 1"),
        ({"files": {}}, "does not list encoder.onnx"),
        ({"files": {"../secret": "00"}}, "not '../secret'"),
        ({"files": {"a\0b": "00"}}, "must be plain names of the bundle.s own files, not .a"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle: Path, changes: dict[str, Any], message: str) -> None:
    change_manifest(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.load(bundle)


def test_the_frame_is_read_as_it_was_written(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "framed", 148, CELEBA_SOURCE)
    assert Bundle.load(bundle).manifest.frame == Frame(IMAGE_SIZE, 148, CELEBA_SOURCE, CELEBA_LANDMARKS)


def test_a_manifest_of_an_older_version_has_a_crop_alone(bundle: Path) -> None:
    change_manifest(bundle, preprocessing={"crop": 12, "resize": "bilinear"})
    assert Bundle.load(bundle).manifest.frame == Frame(IMAGE_SIZE, 12)
    for crop in (None, 0):
        change_manifest(bundle, preprocessing={"crop": crop, "resize": "bilinear"})
        assert Bundle.load(bundle).manifest.frame == Frame(IMAGE_SIZE)


def test_a_manifest_without_a_key_or_no_json_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    del values["precision"]
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"manifest\.json: precision is missing"):
        Bundle.load(bundle)
    for text in ("{", "[" * 100_000, "9" * 5000):
        path.write_text(text)
        with pytest.raises(BundleError, match="is not JSON"):
            Bundle.load(bundle)


def test_an_unknown_backend_is_named(bundle: Path) -> None:
    change_manifest(bundle, backend="abacus")
    with pytest.raises(BundleError, match="backend 'abacus'; this engine has: onnxruntime, openvino, tensorrt"):
        open_backend(Bundle.load(bundle))


def test_a_precision_that_a_backend_does_not_have_is_named(bundle: Path) -> None:
    change_manifest(bundle, precision="bf16")
    with pytest.raises(
        BundleError,
        match=r"onnxruntime on cpu in 'bf16'; this engine has it on cpu fp32, fp16, int8; on cuda fp32, fp16",
    ):
        open_backend(Bundle.load(bundle))


def version_3(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest as version 3 wrote it."""
    return {**{name: value for name, value in values.items() if name not in ("kinds", "device")}, "format_version": 3}


def test_the_format_before_is_read(bundle: Path) -> None:
    path = bundle / "manifest.json"
    new = Bundle.load(bundle).manifest
    path.write_text(json.dumps(version_3(json.loads(path.read_text()))))
    assert Bundle.load(bundle).manifest == replace(new, kinds=(), proof={"status": "unknown"})
    assert Bundle.load(bundle).directions.kinds == new.kinds == ("mean", "adjusted", "svm")


def test_a_manifest_and_directions_of_other_kinds_are_refused(bundle: Path) -> None:
    change_manifest(bundle, kinds=["mean", "mean", "mean"])
    with pytest.raises(BundleError, match=r"of the kinds \['mean', 'adjusted', 'svm'\], the manifest says \['mean', "):
        Bundle.load(bundle)


HERE = {"tensorrt": "10.3.0", "gpu": "NVIDIA H100", "compute_capability": "9.0"}


@pytest.mark.parametrize(
    ("built", "message"),
    [
        ({**HERE, "tensorrt": "8.6.0"}, "built for tensorrt 8.6.0, gpu NVIDIA H100"),
        ({**HERE, "gpu": "NVIDIA T4"}, "gpu NVIDIA T4"),
        ({}, "something that the manifest does not name"),
    ],
)
def test_plans_of_another_gpu_or_tensorrt_are_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, built: dict[str, str], message: str
) -> None:
    monkeypatch.setattr("engine.backends.tensorrt.require_device", lambda *_: HERE)
    change_manifest(bundle, backend="tensorrt", device="cuda", precision="fp16", tensorrt={"device": built})
    expected = rf"{message}.*, this machine has tensorrt 10\.3\.0.*{RETARGET} --backend tensorrt --precision fp16 --out"
    with pytest.raises(BackendError, match=expected):
        open_backend(Bundle.load(bundle))


def test_plans_of_this_gpu_are_taken_to_tensorrt(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("engine.backends.tensorrt.require_device", lambda *_: HERE)
    monkeypatch.setattr("engine.backends.tensorrt.TensorRtBackend", lambda *given: opened.append(given[2]))
    changes = {"device": "cuda", "precision": "fp16", "engine": {**ENGINE, "edit": "decoder.onnx"}}
    change_manifest(bundle, backend="tensorrt", **changes, tensorrt={"device": HERE})
    open_backend(Bundle.load(bundle))
    (options,) = opened
    assert (options.backend, options.device, options.max_batch_size) == ("tensorrt", "cuda", 32)
    assert options.edit == bundle / "decoder.onnx"


RTX_HERE = {"tensorrt-rtx": "1.7.1", "gpu": "NVIDIA RTX 6000 Ada", "compute_capability": "8.9"}
RTX_BUILT: dict[str, Any] = {"tensorrt-rtx": "1.7.1", "compute_capabilities": ["8.6", "8.9"]}


def test_plans_for_several_kinds_of_gpu_are_taken_to_tensorrt_for_rtx(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("engine.backends.tensorrt.require_device", lambda *_: RTX_HERE)
    monkeypatch.setattr("engine.backends.tensorrt.TensorRtBackend", lambda *given: opened.append(given[2].backend))
    change_manifest(bundle, backend="tensorrt-rtx", device="cuda", precision="fp16", tensorrt={"device": RTX_BUILT})
    open_backend(Bundle.load(bundle))
    assert opened == ["tensorrt-rtx"]


@pytest.mark.parametrize(
    ("built", "message"),
    [
        ({**RTX_BUILT, "compute_capabilities": ["8.6", "12.0"]}, "built for .*compute_capabilities 8.6 and 12.0, this"),
        ({**RTX_BUILT, "tensorrt-rtx": "1.6.0"}, "built for tensorrt-rtx 1.6.0, .*, this machine has .* 1.7.1"),
    ],
)
def test_plans_of_tensorrt_for_rtx_for_other_gpus_are_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, built: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("engine.backends.tensorrt.require_device", lambda *_: RTX_HERE)
    change_manifest(bundle, backend="tensorrt-rtx", device="cuda", precision="fp16", tensorrt={"device": built})
    with pytest.raises(BackendError, match=rf"{message}.*{RETARGET} --backend tensorrt-rtx --precision fp16 --out"):
        open_backend(Bundle.load(bundle))


def test_engines_are_opened_only_where_they_were_proven(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    open_backend(loaded, device="cpu")
    with pytest.raises(
        BackendError, match=rf"built and proven for cpu, not for cuda:1; .*{RETARGET} --device cuda --out"
    ):
        open_backend(loaded, device="cuda:1")


@pytest.mark.parametrize(
    ("backend", "precision", "device"),
    [("onnxruntime", "fp16", "cuda"), ("onnxruntime", "int8", "cpu"), ("tensorrt-rtx", "int8", "cuda")],
)
def test_of_an_older_manifest_backend_and_precision_say_the_device(
    bundle: Path, backend: str, precision: str, device: str
) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(version_3(json.loads(path.read_text()))))
    change_manifest(bundle, backend=backend, precision=precision)
    assert Bundle.load(bundle).manifest.device == device


def test_the_proof_is_a_known_word(bundle: Path) -> None:
    change_manifest(bundle, proof={"status": "maybe"})
    with pytest.raises(BundleError, match="proof must have the status 'proven' or 'unproven', not 'maybe'"):
        Bundle.load(bundle)


def test_bundles_of_before_there_was_a_proof_are_read(bundle: Path) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    del values["proof"], values["kinds"]
    (bundle / "manifest.json").write_text(json.dumps({**values, "format_version": 3}))
    assert Bundle.load(bundle).manifest.proof == {"status": "unknown"}


def test_graphs_that_do_not_fit_are_refused(bundle: Path) -> None:
    (bundle / "decoder.onnx").write_bytes((bundle / "encoder.onnx").read_bytes())
    reseal(bundle)
    with pytest.raises(BundleError, match=r"decoder\.onnx has inputs \['images'\]"):
        open_backend(Bundle.load(bundle))
    (bundle / "decoder.onnx").write_bytes(b"no graph")
    reseal(bundle)
    with pytest.raises(BundleError, match=r"can't open .*decoder\.onnx"):
        open_backend(Bundle.load(bundle))


def test_warm_up_compares_the_graphs_with_the_manifest(bundle: Path) -> None:
    model = onnx.load(bundle / "encoder.onnx")
    model.graph.node.append(onnx.helper.make_node("Concat", ["mu", "mu"], ["wide"], axis=1))
    model.graph.output[1].name = "wide"
    model.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 2 * LATENT_DIM
    model.graph.node[2].output[0] = "narrow"
    model.graph.node[3].output[0] = model.graph.output[1].name = "log_var"
    onnx.save(model, bundle / "encoder.onnx")
    reseal(bundle)
    loaded = Bundle.load(bundle)
    first, *_ = warmup_calls(open_backend(loaded), loaded.manifest)
    with pytest.raises(BundleError, match=r"log_var \[1, 384\]"):
        first()
