"""Networks of other projects, as those build them, with the settings that they publish for CelebA.

Network and loss are imported from the project; nothing of it is copied here but these settings:

- PyTorch-VAE, https://github.com/AntixK/PyTorch-VAE: configs/vae.yaml and configs/dfc_vae.yaml, flips as in dataset.py.
  Images are in [0, 1] there although the network ends in tanh.
- Its DFCVAE compares features of VGG19 with batch norm, of images that aren't normalised. VGG19 is in training mode, as
  pytorch-lightning 1.5.6 of its requirements.txt has it.
- pythae, https://github.com/clementchadebec/benchmark_VAE: examples/scripts/configs/celeba, with the networks of
  pythae.models.nn.benchmarks.celeba, and Adam as in its BaseTrainer. RAE is RAE_L2, and its decoder has the weight
  decay of its configuration, as in examples/scripts/reproducibility/rae_l2.py; its CoupledOptimizerTrainer would ignore
  the configured learning rate, for 1e-4.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import vgg19_bn

from trainer.errors import ConfigError
from trainer.loss import pretrained

Name = Literal["antixk-vanilla", "antixk-dfc", "pythae-vae", "pythae-wae", "pythae-rae"]
IMAGE_SIZE = 64
"""Side of the images that all of them are made for, pixels."""
SEED = 0
"""Of the weights, and of what training draws."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A network of another project, and how that project trains it, with Adam.

    Attributes:
        module: the network.
        loss: of images (B, 3, S, S) float32 in [0, 1].
        encode: such images to mu (B, D) and log variances (B, D); to mu alone in a network that gives points.
        decode: latents (B, D) to images.
        parameters: Adam's groups.
        batch_size: images a step.
        lr: learning rate.
        decay: what the learning rate is multiplied by after an epoch.
        flip: mirror each image with probability one half.
        note: where the settings come from, and what else it was given.
    """

    module: nn.Module
    loss: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Sequence[Tensor]]
    decode: Callable[[Tensor], Tensor]
    parameters: list[dict[str, Any]]
    batch_size: int
    lr: float
    decay: float = 1.0
    flip: bool = False
    note: str


def load(name: Name, source: Path | None, vgg_bn_weights: Path | None) -> Peer:
    """Builds a network.

    Args:
        name: which.
        source: checkout of its project; None for a pythae that is installed.
        vgg_bn_weights: for antixk-dfc, see `load_vgg19_bn`.

    Raises:
        ConfigError: the project or the file is missing; names the flag of `quality_peers.py`.
    """
    torch.manual_seed(SEED)
    if name == "antixk-vanilla":
        return _antixk(_import("models", source), "VanillaVAE", "vae.yaml")
    if name == "antixk-dfc":
        models = _import("models", source)
        vgg, given = load_vgg19_bn(vgg_bn_weights)
        models.dfcvae.vgg19_bn = lambda **_: vgg  # torchvision's would be downloaded
        return _antixk(models, "DFCVAE", f"dfc_vae.yaml; {given}")
    pythae, networks = _import("pythae.models", source), _import("pythae.models.nn.benchmarks.celeba", source)
    form: dict[str, Any] = {"input_dim": (3, IMAGE_SIZE, IMAGE_SIZE), "latent_dim": 64}
    if name == "pythae-vae":
        made = pythae.VAEConfig(**form, reconstruction_loss="mse")
        encoder, decoder = networks.Encoder_Conv_VAE_CELEBA(made), networks.Decoder_Conv_AE_CELEBA(made)
        return _pythae(pythae.VAE(made, encoder, decoder), "vae_config.json")
    if name == "pythae-wae":
        made = pythae.WAE_MMD_Config(**form, kernel_choice="imq", reg_weight=100, kernel_bandwidth=1.0)
        encoder, decoder = networks.Encoder_Conv_AE_CELEBA(made), networks.Decoder_Conv_AE_CELEBA(made)
        return _pythae(pythae.WAE_MMD(made, encoder, decoder), "wae_config.json")
    made = pythae.RAE_L2_Config(**form, embedding_weight=1e-4, reg_weight=1e-7)
    encoder, decoder = networks.Encoder_Conv_AE_CELEBA(made), networks.Decoder_Conv_AE_CELEBA(made)
    return _pythae(pythae.RAE_L2(made, encoder, decoder), "rae_l2_config.json", weight_decay=made.reg_weight)


def _import(name: str, source: Path | None) -> Any:
    package = name.partition(".")[0]
    if source is not None:
        root = source / ("src" if package == "pythae" else "")
        if not (root / package / "__init__.py").is_file():
            raise ConfigError(f"--source {source}: has no {root / package}; give a checkout of the peer's project")
        sys.path.insert(0, str(root.resolve()))
    elif package == "models":
        raise ConfigError("--source: is missing; give a checkout of PyTorch-VAE")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"the peer cannot be imported: {error}; pip install {error.name or package}") from error


def _antixk(models: Any, name: str, settings: str) -> Peer:
    module = getattr(models, name)(in_channels=3, latent_dim=128)
    return Peer(
        module=module,
        loss=lambda images: module.loss_function(*module(images), M_N=0.00025)["loss"],
        encode=module.encode,
        decode=module.decode,
        parameters=[{"params": [parameter for parameter in module.parameters() if parameter.requires_grad]}],
        batch_size=64,
        lr=0.005,
        decay=0.95,
        flip=True,
        note=f"PyTorch-VAE's {name}, configs/{settings}",
    )


def _pythae(module: Any, settings: str, weight_decay: float = 0.0) -> Peer:
    def encode(images: Tensor) -> Sequence[Tensor]:
        output = module.encoder(images)
        return [output[part] for part in ("embedding", "log_covariance") if part in output]

    decoder = {"params": [*module.decoder.parameters()], "weight_decay": weight_decay}
    return Peer(
        module=module,
        loss=lambda images: module({"data": images}).loss,
        encode=encode,
        decode=lambda latents: module.decoder(latents)["reconstruction"],
        parameters=[{"params": [*module.encoder.parameters()]}, decoder],
        batch_size=100,
        lr=1e-3,
        note=f"pythae's {module.model_name}, examples/scripts/configs/celeba/{settings} and base_training_config.json",
    )


def load_vgg19_bn(file: Path | None) -> tuple[nn.Module, str]:
    """Torchvision's VGG19 with batch norm, and a few words on its weights.

    Args:
        file: its state dict; or one of VGG19 without batch norm, which gives its convolutions. What the file lacks is
            random, and all without a file.

    Raises:
        ConfigError: the file is missing, or of another network.
    """
    network = vgg19_bn()
    if file is None:
        return network, "VGG19-BN with random weights"
    state = pretrained.read(file, "--vgg-bn-weights")
    own = _convolutions(network.state_dict())
    if not any("running_mean" in name for name in state):  # batch norm stays as it is initialised
        pairs = [*zip(own, _convolutions(state), strict=False)]
        state = {f"{to}.{part}": state[f"{of}.{part}"] for to, of in pairs for part in ("weight", "bias")}
    given = [name for name in own if f"{name}.weight" in state]
    try:
        _, unknown = network.load_state_dict(state, strict=False)
    except RuntimeError:  # of another shape
        unknown = [*state]
    if unknown or not given:
        raise ConfigError(
            f"--vgg-bn-weights {file}: not a state dict of torchvision's VGG19, with or without batch norm"
        )
    return network, f"VGG19-BN with {len(given)} of its {len(own)} convolutions from {file.name}, the rest random"


def _convolutions(state: dict[str, Tensor]) -> list[str]:
    found = [name.removesuffix(".weight") for name, value in state.items() if value.dim() == 4]
    return sorted(found, key=lambda name: int(name.rpartition(".")[2]))
