"""Triton's own description of configurations reads ours; ONNX Runtime runs the models as Triton's scheduler would."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from bundles import write_tiny_bundle
from google.protobuf import text_format
from tiny_model import (
    ATTRIBUTES,
    IMAGE_SIZE,
    LATENT_DIM,
    MAX_BATCH_SIZE,
    images_of,
    latents_of,
    random_images,
    tiny_directions,
)

from engine.bundle import Bundle
from engine.latents import Directions
from export.bundle.triton import SIGNATURES, write_triton
from export.errors import InputError

KIND_GPU, KIND_CPU = 1, 2
"""Members of Triton's enumeration."""
MODELS = sorted(f"dfcvae_{name}" for name in SIGNATURES)


def read_config(model: Path) -> Any:
    """A configuration, as Triton would read it: unknown fields and values are refused."""
    triton = importlib.import_module("tritonclient.grpc.model_config_pb2")
    return text_format.Parse((model / "config.pbtxt").read_text(), triton.ModelConfig())


def bundle_of(tiny_bundle: Path, **values: Any) -> Bundle:
    """The tiny bundle, as if its manifest said otherwise."""
    bundle = Bundle.load(tiny_bundle)
    return replace(bundle, manifest=replace(bundle.manifest, **values))


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_triton(Bundle.load(tiny_bundle), folder)
    return folder


def test_every_model_has_its_folder(repository: Path) -> None:
    assert sorted(path.name for path in repository.iterdir()) == MODELS
    for model in repository.iterdir():
        assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt"]
        files = [path.name for path in (model / "1").iterdir()]
        assert files == ([] if model.name == "dfcvae_ensemble" else ["model.onnx"])
    assert [path.name for path in repository.parent.iterdir()] == ["models"]


@pytest.mark.parametrize("name", MODELS)
def test_configurations_are_triton_s(repository: Path, name: str) -> None:
    config = read_config(repository / name)
    assert config.name == name
    assert config.max_batch_size == MAX_BATCH_SIZE
    if name == "dfcvae_ensemble":
        assert config.platform == "ensemble"
        assert config.WhichOneof("scheduling_choice") == "ensemble_scheduling"
        return
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert config.default_model_filename == "model.onnx"
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, KIND_CPU)]
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert list(config.dynamic_batching.preferred_batch_size) == [MAX_BATCH_SIZE]
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, MAX_BATCH_SIZE]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "dfcvae_ensemble"])
def test_configurations_are_of_their_graphs(repository: Path, name: str) -> None:
    config = read_config(repository / name)
    session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
    types = {2: "tensor(uint8)", 11: "tensor(float)"}
    for said, found in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(each.name, types[each.data_type], list(each.dims)) for each in said] == [
            (each.name, each.type, each.shape[1:]) for each in found
        ]
        assert all(isinstance(each.shape[0], str) for each in found)  # the batch, which Triton adds


def test_the_ensemble_edits_as_the_one_graph_does(repository: Path) -> None:
    images = random_images(4, seed=0)
    strengths = np.array([[1, 0, 0], [0, 0, 0], [-1, 0.5, 2], [0, 3, 0]], np.float32)
    tensors: dict[str, Any] = {"images": images, "strengths": strengths}
    config = read_config(repository / "dfcvae_ensemble")
    assert {each.name for each in config.input} == set(tensors)
    for step in config.ensemble_scheduling.step:
        session = onnxruntime.InferenceSession(repository / step.model_name / "1" / "model.onnx")
        names = list(step.output_map)
        results = session.run(names, {key: tensors[value] for key, value in step.input_map.items()})
        tensors |= {step.output_map[name]: result for name, result in zip(names, results, strict=True)}
    edited = tensors[config.output[0].name]

    moved = latents_of(images) + strengths @ tiny_directions().vectors
    np.testing.assert_array_equal(edited, images_of(moved))
    whole = onnxruntime.InferenceSession(repository / "dfcvae_edit" / "1" / "model.onnx")
    np.testing.assert_array_equal(whole.run(["edited"], {"images": images, "strengths": strengths})[0], edited)


def test_the_order_of_strengths_is_said(repository: Path) -> None:
    for name in ("edit", "arithmetic", "ensemble"):
        config = read_config(repository / f"dfcvae_{name}")
        assert config.parameters["attributes"].string_value == ",".join(ATTRIBUTES)
    assert not read_config(repository / "dfcvae_encoder").parameters


@pytest.mark.parametrize(
    ("served", "expected", "parameters"),
    [
        (("onnxruntime", "cuda", "fp16"), ("onnxruntime", KIND_GPU), {}),
        (("onnxruntime", "cuda", "fp32"), ("onnxruntime", KIND_GPU), {}),
        (("onnxruntime", "cpu", "fp16"), ("onnxruntime", KIND_CPU), {}),
        (("onnxruntime", "cpu", "int8"), ("onnxruntime", KIND_CPU), {}),
        (("openvino", "cpu", "fp32"), ("onnxruntime", KIND_CPU), {}),
        (("openvino", "cpu", "bf16"), ("openvino", KIND_CPU), {"HINT_BF16": "YES"}),
        (("openvino", "cpu", "int8"), ("openvino", KIND_CPU), {}),
    ],
)
def test_backends(
    tiny_bundle: Path,
    tmp_path: Path,
    served: tuple[str, str, str],
    expected: tuple[str, int],
    parameters: dict[str, str],
) -> None:
    backend, device, precision = served
    write_triton(bundle_of(tiny_bundle, backend=backend, device=device, precision=precision), tmp_path / "models")
    for name in ("encoder", "decoder", "edit"):
        config = read_config(tmp_path / "models" / f"dfcvae_{name}")
        assert (config.backend, config.instance_group[0].kind) == expected
        if config.backend == "openvino":
            found = {key: value.string_value for key, value in config.parameters.items() if key != "attributes"}
            assert found == {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", **parameters}
    arithmetic = read_config(tmp_path / "models" / "dfcvae_arithmetic")
    assert (arithmetic.backend, arithmetic.instance_group[0].kind) == ("onnxruntime", expected[1])


def test_plans(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    for name in ("encoder", "decoder"):
        (folder / f"{name}.plan").write_bytes(name.encode())
    engine = replace(Bundle.load(folder).manifest.engine, encoder="encoder.plan", decoder="decoder.plan")
    write_triton(
        bundle_of(folder, backend="tensorrt", device="cuda", precision="fp16", engine=engine), tmp_path / "models"
    )
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        name for name in MODELS if name != "dfcvae_edit"
    ]
    for name in ("encoder", "decoder"):
        model = tmp_path / "models" / f"dfcvae_{name}"
        config = read_config(model)
        assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "model.plan")
        assert (config.backend, config.instance_group[0].kind) == ("tensorrt", KIND_GPU)
        assert (model / "1" / "model.plan").read_bytes() == name.encode()
    assert read_config(tmp_path / "models" / "dfcvae_arithmetic").instance_group[0].kind == KIND_GPU


def test_a_model_without_attributes(tiny_bundle: Path, tmp_path: Path) -> None:
    none = Directions((), np.zeros((0, LATENT_DIM), np.float32), (), (), "train")
    write_triton(replace(Bundle.load(tiny_bundle), directions=none), tmp_path / "models")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["dfcvae_decoder", "dfcvae_encoder"]


def test_batches_of_one(tiny_bundle: Path, tmp_path: Path) -> None:
    write_triton(bundle_of(tiny_bundle, max_batch_size=1), tmp_path / "models")
    config = read_config(tmp_path / "models" / "dfcvae_edit")
    assert config.max_batch_size == 1
    assert [warmup.batch_size for warmup in config.model_warmup] == [1]
    inputs = config.model_warmup[0].inputs
    assert {name: list(inputs[name].dims) for name in inputs} == {
        "images": [IMAGE_SIZE, IMAGE_SIZE, 3],
        "strengths": [len(ATTRIBUTES)],
    }


def test_what_exists_is_left_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match=r"--triton .*: exists already; choose another place"):
            write_triton(bundle, place)
    with pytest.raises(InputError, match=r"--triton .*file cannot be written to \(Not a directory\)"):
        write_triton(bundle, tmp_path / "file" / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_half_a_repository_never_stays(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.bundle.triton.write_move", fail)
    with pytest.raises(InputError, match=r"--triton .*: the disk is full \(No space left on device\)"):
        write_triton(Bundle.load(tiny_bundle), tmp_path / "new" / "models")
    assert list(tmp_path.iterdir()) == []
