import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import reseal
from tiny_model import ATTRIBUTES, IMAGE_SIZE, LATENT_DIM, tiny_directions

from engine.backends import open_backend, warm_up
from engine.bundle import Bundle, Manifest, sha256_of
from engine.errors import BundleError

ENGINE = {"encoder": "encoder.onnx", "decoder": "decoder.onnx", "split": False, "chosen": {}}
REBUILD = r"python -m export\.build_engines --run RUN --out BUNDLE"


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
    assert set(bundle.manifest.files) == {"encoder.onnx", "decoder.onnx", "directions.safetensors"}


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


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "directions.safetensors"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing.*{REBUILD}"):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "directions.safetensors"])
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
    replace(directions, names=("Smiling", "Male", "Eyeglasses")).save(path)
    reseal(bundle)
    with pytest.raises(BundleError, match=r"the manifest says \['Smiling', 'Eyeglasses', 'Male'\]"):
        Bundle.load(bundle)
    replace(directions, vectors=np.zeros((3, 7), np.float32)).save(path)
    reseal(bundle)
    with pytest.raises(BundleError, match="vectors of 7 values, the manifest says latent_dim 192"):
        Bundle.load(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format version 1, this engine reads 2.*build it with"),
        ({"format_version": None}, "format version None"),
        ({"colour": "red"}, "unknown keys in the manifest: colour"),
        (
            {"preprocessing": {"crop": 12, "resize": "bilinear", "flip": True}},
            "unknown keys in the preprocessing: flip",
        ),
        ({"preprocessing": {"resize": "bilinear"}}, "keys missing in the preprocessing: crop"),
        ({"preprocessing": {"crop": 12, "resize": "nearest"}}, "not 'nearest'"),
        ({"preprocessing": {"crop": "12", "resize": "bilinear"}}, "preprocessing.crop must be a number"),
        ({"image_size": "64"}, "image_size must be int, not '64'"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, not 0"),
        ({"engine": {"encoder": "encoder.onnx"}}, "keys missing in the engine: chosen, decoder, split"),
        ({"engine": {**ENGINE, "decoder": "absent.onnx"}}, "does not list absent.onnx"),
        ({"engine": {**ENGINE, "split": 1}}, "engine.split must be bool, not 1"),
        ({"engine": {**ENGINE, "chosen": []}}, r"engine.chosen must be dict, not \[\]"),
        ({"attributes": [1]}, "attributes must be strings"),
        ({"files": {}}, "does not list encoder.onnx"),
        ({"files": {"../secret": "00"}}, "not '../secret'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle: Path, changes: dict[str, Any], message: str) -> None:
    change_manifest(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.load(bundle)


def test_a_manifest_without_a_key_or_no_json_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    del values["precision"]
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match="keys missing in the manifest: precision"):
        Bundle.load(bundle)
    path.write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle.load(bundle)


def test_an_unknown_backend_is_named(bundle: Path) -> None:
    change_manifest(bundle, backend="abacus")
    with pytest.raises(BundleError, match="backend 'abacus'; this engine has: onnxruntime, openvino"):
        open_backend(Bundle.load(bundle))


def test_a_precision_that_a_backend_does_not_have_is_named(bundle: Path) -> None:
    change_manifest(bundle, precision="int8")
    with pytest.raises(BundleError, match="asks for onnxruntime in 'int8'; this engine has: fp32"):
        open_backend(Bundle.load(bundle))


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
    with pytest.raises(BundleError, match=r"log_var \[1, 384\]"):
        warm_up(open_backend(loaded), loaded.manifest)
