"""Small but real run folders: random weights and batch norm statistics, written through the trainer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_model import save_directions
from torch import nn

from engine.latents import Directions
from trainer.artifacts.prior import fit_priors, save_priors
from trainer.config import ModelConfig, TrainConfig
from trainer.model import VAE
from trainer.run_folder import save_config, save_model, sha256_of

LATENT_DIM = 16
ATTRIBUTES = ("Smiling", "Eyeglasses", "Bald")
PRIVATE_PATH = "/home/someone/private/celeba"

# These models are too small for two threads, which on a busy machine mostly wait for one another.
torch.set_num_threads(1)


def randomise(module: nn.Module) -> None:
    """Weights and statistics as after some training: signals of order one, nothing at its first value."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.5)
            nn.init.uniform_(part.running_var, 0.05, 2.0)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.3)


def smooth_images(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Large blobs of colour, uint8 [count, size, size, 3]."""
    coarse = torch.rand(count, 3, 5, 5)
    fine = nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    images: npt.NDArray[np.uint8] = (fine * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return images


SEED_FORM = ModelConfig(latent_dim=LATENT_DIM, channels=(8, 8, 16, 16, 24))
"""The seed's network with few channels."""
FORMS = {
    "seed-64": SEED_FORM,
    "seed-128": replace(SEED_FORM, image_size=128),
    "paper-64": replace(SEED_FORM, channels=(8, 8, 16, 24), kernel_size=4, decoder="nearest"),
    "kernel-4": replace(SEED_FORM, kernel_size=4),
}
"""Every form of network that the configuration can ask for."""


def small_vae(form: ModelConfig = SEED_FORM) -> VAE:
    """A VAE with few channels, in evaluation mode; the same one each time."""
    model = VAE(form)
    torch.manual_seed(0)  # here, so that the weights don't depend on how a VAE starts
    randomise(model)
    return model.eval()


def own_derived(run: Path) -> None:
    """Makes directions and prior say that they are of the run's present weights."""
    for path in (run / "directions.safetensors", run / "prior.safetensors"):
        with safe_open(path, "np") as file:
            metadata = {**file.metadata(), "model_sha256": sha256_of(run / "model.safetensors")}
        save_file(load_file(path), path, metadata)


def write_run(folder: Path, image_size: int = 64, samples: int = 11) -> Path:
    """A run folder as a finished training leaves it, without figures and metrics."""
    folder.mkdir()
    model = small_vae(replace(SEED_FORM, image_size=image_size))
    config = TrainConfig(preset="plain", model=model.config, taps=(), crop=148)
    save_config(folder, config, {"data": PRIVATE_PATH, "images": {"train": 90}, "steps": 7})
    save_model(folder, model)
    vectors = np.random.default_rng(0).standard_normal((len(ATTRIBUTES), LATENT_DIM), dtype=np.float32)
    kinds, model_sha256 = ("mean", "adjusted", "svm"), sha256_of(folder / "model.safetensors")
    directions = Directions(ATTRIBUTES, vectors, (40, 41, 42), (50, 49, 48), "train", kinds, model_sha256)
    save_directions(directions, folder / "directions.safetensors")
    mu, log_var = np.random.default_rng(1).standard_normal((2, 90, LATENT_DIM), dtype=np.float32)
    save_priors(folder / "prior.safetensors", fit_priors(mu, log_var), 90, model_sha256)
    save_file({"images": smooth_images(samples, image_size)}, folder / "samples.safetensors")
    return folder
