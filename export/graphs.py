"""The two ONNX graphs of a model: uint8 images outside, all scaling and layout inside, any batch size.

Shapes: N batch (dynamic), S image_size, D latent_dim, C channels[-1], s = S / 32.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from engine.bundle import DECODER, ENCODER, FORMAT_VERSION
from export.rewrite import fold_batch_norm
from trainer.model import VAE, Decoder, Encoder

OPSET = 17
"""The newest ONNX opset that every supported TensorRT parser reads."""


class EncoderGraph(nn.Module):
    """Images, uint8 (N, S, S, 3) RGB, to mu and log_var, float32 (N, D) each."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes."""
        mu, log_var = self.encoder(images.permute(0, 3, 1, 2).float() / 255)
        return mu, log_var


class DecoderGraph(nn.Module):
    """Latents, float32 (N, D), to images, uint8 (N, S, S, 3) RGB, rounded half to even."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decodes."""
        pixels: Tensor = self.decoder(latents)  # (N, 3, S, S)
        levels = (pixels * 255).round().clamp(0, 255)
        return levels.to(torch.uint8).permute(0, 2, 3, 1)


def write_graphs(model: VAE, folder: Path, model_sha256: str) -> None:
    """Writes encoder.onnx and decoder.onnx, float32: the same model gives the same bytes.

    Args:
        model: The VAE in evaluation mode, on the CPU.
        folder: Where to write; must exist.
        model_sha256: SHA-256 of the run's weights, hex; recorded in the graphs' metadata.
    """
    size, latent_dim = model.config.image_size, model.config.latent_dim
    # An exporter may take a batch of one for a constant; two stays dynamic.
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    latents = torch.zeros(2, latent_dim)
    encoder = EncoderGraph(fold_batch_norm(model.encoder))
    decoder = DecoderGraph(fold_batch_norm(model.decoder))
    for file, graph, sample, inputs, outputs in (
        (ENCODER, encoder, images, ["images"], ["mu", "log_var"]),
        (DECODER, decoder, latents, ["latents"], ["images"]),
    ):
        _trace(graph, sample, folder / file, inputs, outputs)
        # The tracer loses height and width behind the Reshape; ONNX's own inference finds them.
        traced = onnx.shape_inference.infer_shapes(onnx.load(folder / file), strict_mode=True)
        traced.graph.ClearField("value_info")
        _label(traced, Path(file).stem, model_sha256)
        onnx.checker.check_model(traced, full_check=True)
        (folder / file).write_bytes(traced.SerializeToString(deterministic=True))


def _trace(graph: nn.Module, sample: Tensor, path: Path, inputs: list[str], outputs: list[str]) -> None:
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but it alone writes opset 17 itself, with no more packages.
        warnings.simplefilter("ignore", DeprecationWarning)
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


def _label(traced: onnx.ModelProto, name: str, model_sha256: str) -> None:
    """Says what the graph is and where it comes from; leaves nothing of the machine that traced it."""
    traced.producer_name, traced.producer_version = "dfc-vae", version("dfc-vae")
    traced.graph.name = name
    for part in (traced, traced.graph, *traced.graph.node):
        part.ClearField("doc_string")
    onnx.helper.set_model_props(traced, {"bundle_format_version": str(FORMAT_VERSION), "model_sha256": model_sha256})
