"""The two ONNX graphs of a model: uint8 images outside, all scaling and layout inside, any batch size.

Shapes: N batch (dynamic), S image_size, D latent_dim, C channels[-1], s side of the deepest features.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from engine.backends.base import Names
from engine.bundle import DECODER, ENCODER, FORMAT_VERSION
from engine.version import NAME, version_here
from export.graphs.forms import decoder_graph, encoder_graph
from export.graphs.names import PLAIN, DecoderForm, EncoderForm, file_name
from export.graphs.onnx_model import drop_unused, write_model
from trainer.model import VAE

OPSET = 17
"""The newest ONNX opset that every supported TensorRT parser reads."""


def write_graphs(
    model: VAE,
    folder: Path,
    model_sha256: str,
    encoders: Iterable[EncoderForm] = (PLAIN,),
    decoders: Iterable[DecoderForm] = (PLAIN,),
) -> None:
    """Writes encoder.onnx and decoder.onnx, float32, and their other forms: the same model gives the same bytes.

    The model is in evaluation mode, on the CPU; the SHA-256 of its weights, hex, stands in the metadata of the graphs.
    """
    for encoder in encoders:
        write_encoder(model, encoder, folder, model_sha256)
    for decoder in decoders:
        write_decoder(model, decoder, folder, model_sha256)


def write_encoder(model: VAE, form: EncoderForm, folder: Path, model_sha256: str) -> str:
    """Writes the encoder in one form; otherwise as `write_graphs`. Returns the file's name."""
    size = model.config.image_size
    # An exporter may take a batch of one for a constant; two stays dynamic.
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    path, names = folder / file_name(ENCODER, form), (["images"], ["mu", "log_var"])
    return _write(encoder_graph(model.encoder, form), images, path, model_sha256, names)


def write_decoder(model: VAE, form: DecoderForm, folder: Path, model_sha256: str) -> str:
    """Writes the decoder in one form; otherwise as `write_graphs`. Returns the file's name."""
    latents = torch.zeros(2, model.config.latent_dim)
    path, names = folder / file_name(DECODER, form), (["latents"], ["images"])
    return _write(decoder_graph(model.decoder, form), latents, path, model_sha256, names)


def _write(graph: nn.Module, sample: Tensor, path: Path, model_sha256: str, names: Names) -> str:
    """Traces, simplifies, labels and checks a graph; returns the file's name."""
    inputs, outputs = names
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but it alone writes opset 17 itself, with no more packages.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding")  # what it leaves, _fold_constants folds
        # Sizes of images are constants: a runtime would compute them anew, and on a GPU that means on the host.
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python integer")
        torch.onnx.export(
            graph,
            (sample,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
        )
    traced = onnx.load(path)
    _fold_constants(traced.graph)
    # The tracer loses height and width behind the Reshape; ONNX's own inference finds them.
    traced = onnx.shape_inference.infer_shapes(traced, strict_mode=True)
    traced.graph.ClearField("value_info")
    # What the graph is and where it comes from, and nothing of the machine that traced it.
    traced.producer_name, traced.producer_version = NAME, version_here()
    traced.graph.name = path.stem
    for part in (traced, traced.graph, *traced.graph.node):
        part.ClearField("doc_string")
    write_model(traced, {"bundle_format_version": str(FORMAT_VERSION), "model_sha256": model_sha256}, path)
    return path.name


def _fold_constants(graph: onnx.GraphProto) -> None:
    """Replaces nodes that depend on no input by their values: the tracer spells out how a padding is computed."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in list(graph.node):
        if all(not name or name in known for name in node.input):
            inputs = {name: known[name] for name in node.input if name}
            for name, value in zip(node.output, ReferenceEvaluator(node).run(None, inputs), strict=True):
                known[name] = np.asarray(value)
                graph.initializer.append(numpy_helper.from_array(known[name], name))
            graph.node.remove(node)
    drop_unused(graph)
