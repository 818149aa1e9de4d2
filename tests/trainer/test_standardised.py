"""Latents of a finished run: each has mean 0 and variance 1 over the train split, and images stay what they were."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from trainer.artifacts.encode import encode
from trainer.artifacts.prior import moments
from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.hardware.device import Placement
from trainer.loss.vae_loss import kl_divergence
from trainer.model import VAE
from trainer.presets import PRESETS
from trainer.run_folder import MODEL, PRIOR, load_model
from trainer.training import train


def test_a_finished_run_has_standard_latents(trained: Path, data: FaceData) -> None:
    mean, std = moments(*encode(load_model(trained), data.images, data.rows("train"), Placement.of("cpu")))
    np.testing.assert_allclose(mean, 0, atol=1e-4)
    np.testing.assert_allclose(std, 1, atol=1e-4)


def test_what_was_done_is_not_done_again(trained: Path, data: FaceData, small: TrainConfig, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    weights, prior = (run / MODEL).read_bytes(), load_file(run / PRIOR)
    (run / PRIOR).unlink()
    train(replace(small, epochs=1), data, run, resume=True)
    assert (run / MODEL).read_bytes() == weights
    again = load_file(run / PRIOR)
    for name, values in prior.items():
        np.testing.assert_array_equal(again[name], values)


@pytest.mark.parametrize("preset", ["seed", "paper-123", "best"])
def test_shifted_and_scaled_latents_make_the_same_images(preset: str) -> None:
    torch.manual_seed(0)
    sizes = PRESETS[preset]().model
    model, images, noise = VAE(sizes).eval(), torch.rand(8, 3, 64, 64), torch.randn(8, sizes.latent_dim)
    model.encoder.log_var.weight.data.normal_(0, 0.01)
    with torch.no_grad():
        before = model(images, noise)
        mean, std = before.latents.double().mean(dim=0), before.latents.double().std(dim=0)
        model.shift_and_scale_latents(mean, std)
        after = model(images, noise)
    torch.testing.assert_close(after.images, before.images, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.latents, ((before.latents - mean) / std).float(), atol=1e-4, rtol=1e-4)
    assert kl_divergence(after.mu, after.log_var).sum() < kl_divergence(before.mu, before.log_var).sum()
