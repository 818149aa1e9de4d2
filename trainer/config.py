"""Configuration of a training run: typed, frozen, validated, and written into the run folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ConfigError

VGG19_TAPS = (
    "relu1_1", "relu1_2", "relu2_1", "relu2_2",
    "relu3_1", "relu3_2", "relu3_3", "relu3_4",
    "relu4_1", "relu4_2", "relu4_3", "relu4_4",
    "relu5_1", "relu5_2", "relu5_3", "relu5_4",
)  # fmt: skip
"""The ReLU outputs of VGG19 in order of depth: what `taps` may name."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the VAE (seed: 64 pixels, 128 latents, five blocks)."""

    image_size: int = 64
    """Side of the square RGB image, pixels; a multiple of 32."""
    latent_dim: int = 128
    """Size of the latent vector."""
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Channels after each of the five encoder blocks; the decoder mirrors them."""

    def __post_init__(self) -> None:
        _require(
            self.image_size > 0 and self.image_size % 32 == 0,
            f"--image-size {self.image_size}: must be a positive multiple of 32, such as 64 or 128",
        )
        _require(self.latent_dim > 0, f"--latent-dim {self.latent_dim}: must be at least 1")
        _require(
            len(self.channels) == 5 and all(c > 0 for c in self.channels),
            f"--channels {self.channels}: must be five positive numbers, such as 32 64 128 256 512",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes. `trainer.presets` holds the named ones."""

    preset: str = "seed"
    """Name of the preset that the other values started from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes of the VAE."""

    crop: int = 148
    """Side of the centre crop taken before resizing, pixels; 0 for images that are cropped already."""
    flip: bool = True
    """Mirror each training image left to right with probability one half."""

    epochs: int = 10
    """Passes over the train split."""
    batch_size: int = 64
    """Images per step."""
    optimizer: Literal["adam", "muon"] = "adam"
    """muon: Muon for the kernels inside the network, Adam for everything else."""
    lr: float = 0.05
    """Peak learning rate of Adam."""
    muon_lr: float = 0.04
    """Peak learning rate of Muon; follows the same schedule."""
    schedule: Literal["constant", "step", "one-cycle"] = "step"
    """step: times `lr_gamma` after each epoch; one-cycle: warm-up to `lr`, then cosine to zero, per step."""
    lr_gamma: float = 0.1
    """Factor of the step schedule."""
    grad_clip: float = 0.0
    """Largest norm of the gradient, longer ones are scaled down; 0 for no limit."""
    seed: int = 0
    """Seed of the weights, the order of the images, the flips and the latent noise."""

    rec_weight: float = 1.0
    """Weight of the pixel and feature terms together (seed's `rec_weight`)."""
    kl_weight: float = 1.0
    """Weight of the KL term (seed's `kl_weight`)."""
    kl_warmup: float = 0.0
    """Share of the run's steps over which the KL weight rises linearly from zero."""
    taps: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    """VGG19 activations compared by the perceptual term; none for a plain VAE."""
    feature_weight: float = 1.0
    """Weight of the sum of feature terms beside the pixel term (seed: 1)."""
    normalise_features: bool = False
    """Divide each tap's activations by their mean over training images, so that any VGG19 weights have one scale."""
    feature_share: float = 1.0
    """Share of each batch on which the feature terms are computed: an unbiased estimate of them, cheaper."""
    vgg_weights: Path | None = None
    """File with VGG19 weights (a torchvision-layout state_dict); default: torchvision's ImageNet weights."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training; auto: bf16 where the device has units for it. Weights stay in FP32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: the GPU if there is one."""
    log_every: int = 10
    """Steps between two records in metrics.jsonl and TensorBoard."""

    def __post_init__(self) -> None:
        _require(self.crop >= 0, f"--crop {self.crop}: must be 0 (no crop) or a number of pixels")
        _require(self.epochs >= 1, f"--epochs {self.epochs}: must be at least 1")
        _require(self.batch_size >= 2, f"--batch-size {self.batch_size}: must be at least 2 (batch norm needs two)")
        _require(self.lr > 0, f"--lr {self.lr}: must be above 0")
        _require(self.muon_lr > 0, f"--muon-lr {self.muon_lr}: must be above 0")
        _require(self.lr_gamma > 0, f"--lr-gamma {self.lr_gamma}: must be above 0")
        _require(self.grad_clip >= 0, f"--grad-clip {self.grad_clip}: must be 0 (no limit) or above")
        _require(self.seed >= 0, f"--seed {self.seed}: must be 0 or above")
        _require(self.log_every >= 1, f"--log-every {self.log_every}: must be at least 1")
        for flag, weight in (
            ("rec-weight", self.rec_weight),
            ("kl-weight", self.kl_weight),
            ("feature-weight", self.feature_weight),
        ):
            _require(weight >= 0, f"--{flag} {weight}: must be 0 or above")
        _require(0 <= self.kl_warmup <= 1, f"--kl-warmup {self.kl_warmup}: must lie between 0 and 1")
        _require(0 < self.feature_share <= 1, f"--feature-share {self.feature_share}: must be above 0, at most 1")
        unknown = [tap for tap in self.taps if tap not in VGG19_TAPS]
        _require(not unknown, f"--taps: unknown {', '.join(unknown)}; VGG19 has {', '.join(VGG19_TAPS)}")
        _require(len(set(self.taps)) == len(self.taps), f"--taps {' '.join(self.taps)}: names one tap twice")
        _require(
            bool(self.taps) or self.vgg_weights is None,
            f"--vgg-weights {self.vgg_weights}: of no use without taps; give --taps or leave it out",
        )

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON types."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigError: a field is unknown, as in a file of another version.
        """
        values = dict(values)
        try:
            model = dict(values.pop("model"))
            model["channels"] = tuple(model["channels"])
            values["taps"] = tuple(values["taps"])
            if values["vgg_weights"] is not None:
                values["vgg_weights"] = Path(values["vgg_weights"])
            return cls(model=ModelConfig(**model), **values)
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"the configuration does not fit this version of the project ({error}); train again"
            ) from error
