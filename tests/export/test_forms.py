from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from runs import FORMS, LATENT_DIM, small_vae, smooth_images
from torch import nn

from export.graphs.forms import decoder_graph, encoder_graph
from export.graphs.names import DECODER_FORMS, ENCODER_FORMS, DecoderForm, EncoderForm, file_name
from export.graphs.trace import write_decoder, write_encoder
from trainer.config import ModelConfig

NETWORKS = pytest.mark.parametrize("network", list(FORMS.values()), ids=list(FORMS))


@NETWORKS
@pytest.mark.parametrize("form", ENCODER_FORMS)
@torch.no_grad()
def test_every_encoder_computes_the_same(network: ModelConfig, form: EncoderForm) -> None:
    model, images = small_vae(network), torch.from_numpy(smooth_images(3, network.image_size))
    graph = encoder_graph(model.encoder, form)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in graph.modules())
    expected = model.encoder(images.permute(0, 3, 1, 2) / 255)
    for values, reference in zip(graph(images), expected, strict=True):
        assert float((values - reference).abs().max()) < 1e-5 * float(reference.abs().max())


@NETWORKS
@pytest.mark.parametrize("form", DECODER_FORMS)
@torch.no_grad()
def test_every_decoder_computes_the_same(network: ModelConfig, form: DecoderForm) -> None:
    model, latents = small_vae(network), torch.randn(3, LATENT_DIM)
    pixels = model.decoder(latents).permute(0, 2, 3, 1)
    levels = decoder_graph(model.decoder, form)(latents)
    assert levels.dtype == torch.uint8
    # Only where a value lies at half a level may rounding go the other way.
    assert float((levels - pixels * 255).abs().max()) < 0.5 + 1e-3


@NETWORKS
def test_every_form_survives_onnx(network: ModelConfig, tmp_path: Path) -> None:
    model = small_vae(network)
    images = smooth_images(5, network.image_size)
    latents = np.random.default_rng(3).standard_normal((5, LATENT_DIM), dtype=np.float32)
    with torch.no_grad():
        mu, log_var = (part.numpy() for part in model.encoder(torch.from_numpy(images).permute(0, 3, 1, 2) / 255))
        pixels = model.decoder(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()
    for encoder in ENCODER_FORMS:
        assert write_encoder(model, encoder, tmp_path, "ab") == file_name("encoder.onnx", encoder)
        session = onnxruntime.InferenceSession(tmp_path / file_name("encoder.onnx", encoder))
        for count in (1, 5):
            for values, reference in zip(session.run(None, {"images": images[:count]}), (mu, log_var), strict=True):
                np.testing.assert_allclose(values, reference[:count], atol=2e-5 * float(np.abs(reference).max()))
    for decoder in DECODER_FORMS:
        assert write_decoder(model, decoder, tmp_path, "ab") == file_name("decoder.onnx", decoder)
        session = onnxruntime.InferenceSession(tmp_path / file_name("decoder.onnx", decoder))
        for count in (1, 5):
            (levels,) = session.run(None, {"latents": latents[:count]})
            assert np.abs(levels - pixels[:count] * 255.0).max() < 0.5 + 1e-2


@NETWORKS
def test_no_size_is_computed_by_a_graph(network: ModelConfig, tmp_path: Path) -> None:
    """ONNX Runtime computes sizes on the CPU, which a session on a GPU refuses."""
    model = small_vae(network)
    names = [write_encoder(model, form, tmp_path, "ab") for form in ENCODER_FORMS]
    names += [write_decoder(model, form, tmp_path, "ab") for form in DECODER_FORMS]
    for name in names:
        assert "Shape" not in {node.op_type for node in onnx.load(tmp_path / name).graph.node}, name


def test_files_are_named_by_their_form() -> None:
    assert file_name("encoder.onnx", "plain") == "encoder.onnx"
    assert file_name("encoder.onnx", "product") == "encoder.product.onnx"


def test_the_rewrites_leave_fewer_enlarging_layers() -> None:
    """One less for each that was merged or put in phases."""
    model = small_vae()
    kinds = {
        form: sum(isinstance(part, nn.ConvTranspose2d) for part in decoder_graph(model.decoder, form).modules())
        for form in DECODER_FORMS
    }
    assert kinds == {"plain": 5, "tail": 4, "phases": 3}
