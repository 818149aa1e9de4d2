"""Bundles of the tiny model, as ONNX graphs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tiny_model import ATTRIBUTES, IMAGE_SIZE, MAX_BATCH_SIZE, TinyModel, save_directions, tiny_directions

from engine.bundle import (
    DECODER,
    DIRECTIONS,
    ENCODER,
    FORMAT_VERSION,
    MANIFEST,
    PRIOR,
    PROOF,
    Engine,
    Manifest,
    Preprocessing,
    sha256_of,
)
from engine.latents import Gaussian, Mixture
from engine.proof.truth import Truth
from framing import Frame


def mix_directions(bundle: Path) -> None:
    """Makes the direction of Male a sum of the others, so that an edit that keeps these leaves nothing of it."""
    directions = tiny_directions()
    vectors = directions.vectors.copy()
    vectors[2] = vectors[0] + 2 * vectors[1]
    save_directions(replace(directions, vectors=vectors), bundle / DIRECTIONS)
    reseal(bundle)


def drop_attributes(bundle: Path) -> None:
    """Makes it a bundle of a run whose images had no labels."""
    directions = tiny_directions()
    none: Any = dict.fromkeys(("names", "positives", "negatives", "kinds", "sides"), ())
    save_directions(replace(directions, vectors=directions.vectors[:0], **none), bundle / DIRECTIONS)
    manifest = Manifest.from_json((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(replace(manifest, attributes=(), kinds=()).to_json())
    reseal(bundle)


def write_tiny_bundle(
    folder: Path, crop: int | None = 12, source: tuple[int, int] | None = None, image_size: int = IMAGE_SIZE
) -> Path:
    """Writes a bundle that `engine.bundle.Bundle.load` takes; with a source, its frame is that of a training."""
    folder.mkdir(parents=True)
    frame = Frame.of(image_size, crop, source) if source else Frame(image_size, crop)
    onnx.save(_encoder(image_size), folder / ENCODER)
    onnx.save(_decoder(image_size), folder / DECODER)
    save_directions(tiny_directions(image_size), folder / DIRECTIONS)
    tiny_truth(image_size).save(folder / PROOF)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        image_size=image_size,
        latent_dim=image_size * image_size * 3,
        preprocessing=Preprocessing.of(frame),
        attributes=ATTRIBUTES,
        kinds=tiny_directions().kinds,
        backend="onnxruntime",
        device="cpu",
        precision="fp32",
        engine=Engine(),
        max_batch_size=MAX_BATCH_SIZE,
        files={name: sha256_of(folder / name) for name in (ENCODER, DECODER, DIRECTIONS, PROOF)},
        parity={"images_max_levels": 0},
        versions={"onnx": onnx.__version__},
        run={"preset": "tiny"},
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


class _Levels:
    """A prior of latents that are levels."""

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = latent_dim

    def draw(self, count: int, seed: int) -> npt.NDArray[np.float32]:
        levels = np.random.default_rng(seed).uniform(0, 255, (count, self.latent_dim))
        return levels.astype(np.float32)


def tiny_truth(image_size: int = IMAGE_SIZE) -> Truth:
    """What the tiny model answers to four images."""
    images = np.random.default_rng(0).integers(0, 256, (4, image_size, image_size, 3), dtype=np.uint8)
    prior: Any = _Levels(image_size * image_size * 3)
    return Truth.of("the tiny model", TinyModel(), images, tiny_directions(image_size), prior)


def reseal(folder: Path) -> None:
    """Makes the manifest's hashes right again after a file was changed on purpose."""
    manifest = Manifest.from_json((folder / MANIFEST).read_text())
    files = {name: sha256_of(folder / name) for name in manifest.files}
    (folder / MANIFEST).write_text(replace(manifest, files=files).to_json())


def save_prior(path: Path, fitted: Gaussian, mixture: Mixture | None = None) -> None:
    """Writes what `engine.latents.load_priors` reads."""
    tensors: dict[str, npt.NDArray[Any]] = {"mean": fitted.mean, "factor": fitted.factor}
    if mixture is not None:
        tensors["weights"] = mixture.weights
        tensors["means"] = np.stack([one.mean for one in mixture.components])
        tensors["factors"] = np.stack([one.factor for one in mixture.components])
    save_file(tensors, path)


def add_prior(bundle: Path, fitted: Gaussian, mixture: Mixture | None = None) -> None:
    """Gives a bundle something to draw from."""
    save_prior(bundle / PRIOR, fitted, mixture)
    manifest = Manifest.from_json((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(replace(manifest, files={**manifest.files, PRIOR: ""}).to_json())
    reseal(bundle)


def spoil(path: Path) -> None:
    """Adds to the bias of a decoder's colours."""
    graph = onnx.load(path)
    bias = next(tensor for tensor in graph.graph.initializer if list(tensor.dims) in ([3], [12]))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(graph, path)


def smile_more(bundle: Path, factor: float) -> None:
    """Changes a bundle into another one: its directions get longer."""
    directions = tiny_directions()
    save_directions(replace(directions, vectors=directions.vectors * np.float32(factor)), bundle / DIRECTIONS)
    reseal(bundle)


def _encoder(size: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "flat"], ["mu"]),
        helper.make_node("Mul", ["mu", "minus_half"], ["log_var"]),
    ]
    return _model(
        nodes,
        inputs=[("images", TensorProto.UINT8, ["N", size, size, 3])],
        outputs=[
            ("mu", TensorProto.FLOAT, ["N", size * size * 3]),
            ("log_var", TensorProto.FLOAT, ["N", size * size * 3]),
        ],
        constants={"flat": np.array([-1, size * size * 3]), "minus_half": np.array(-0.5, np.float32)},
    )


def _decoder(size: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Clip", ["latents", "low", "high"], ["clipped"]),
        helper.make_node("Round", ["clipped"], ["rounded"]),
        helper.make_node("Reshape", ["rounded", "square"], ["levels"]),
        helper.make_node("Cast", ["levels"], ["images"], to=TensorProto.UINT8),
    ]
    return _model(
        nodes,
        inputs=[("latents", TensorProto.FLOAT, ["N", size * size * 3])],
        outputs=[("images", TensorProto.UINT8, ["N", size, size, 3])],
        constants={
            "low": np.array(0, np.float32),
            "high": np.array(255, np.float32),
            "square": np.array([-1, size, size, 3]),
        },
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[int | str]]],
    outputs: list[tuple[str, int, list[int | str]]],
    constants: dict[str, npt.NDArray[np.generic]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model
