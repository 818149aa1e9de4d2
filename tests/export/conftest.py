"""A small but real run folder: random weights with random batch norm statistics, made through the trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from engine.latents import Directions
from export.build_engines import BuildConfig, build
from trainer.checkpoint import save_config, save_model
from trainer.config import ModelConfig, TrainConfig
from trainer.model import VAE

MakeRun = Callable[..., Path]


def randomise(module: nn.Module) -> None:
    """Weights and batch norm statistics as after some training: signals of order one, nothing at its first value."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.5)
            nn.init.uniform_(part.running_var, 0.05, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)


def smooth_images(count: int, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3] with large blobs of colour."""
    coarse = torch.rand(count, 3, 5, 5)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (fine * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def write_run(folder: Path, image_size: int = 64, samples: int = 11, attributes: int = 3) -> Path:
    torch.manual_seed(0)
    model_config = ModelConfig(image_size=image_size, latent_dim=16, channels=(8, 8, 16, 16, 24))
    model = VAE(model_config).eval()
    randomise(model)
    folder.mkdir()
    config = TrainConfig(preset="plain", model=model_config, taps=(), crop=148)
    save_config(folder, config, {"data": "/somewhere/private", "images": {"train": 90}, "steps": 7})
    save_model(folder, model)
    names = ("Smiling", "Eyeglasses", "Bald", "Male")[:attributes]
    vectors = np.random.default_rng(0).standard_normal((attributes, 16), dtype=np.float32)
    Directions(names, vectors, (40,) * attributes, (50,) * attributes, "train").save(
        folder / "directions.safetensors"
    )
    save_file({"images": smooth_images(samples, image_size)}, folder / "samples.safetensors")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of this test alone."""
    return write_run(tmp_path / "run")


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that no test changes."""
    return write_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="session")
def shared_bundle(shared_run: Path) -> Path:
    """The bundle of `shared_run`; no test changes it."""
    return build(BuildConfig(run=shared_run, out=shared_run.parent / "bundle", max_batch=4))
