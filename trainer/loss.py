"""The loss of the seed document, its parts named.

    loss = 0.5 * rec_weight * (MSE(x, y) + feature_weight * sum_l MSE(phi_l(x), phi_l(y))) + kl_weight * KL

with feature_weight = 1 in the seed. Reductions: both MSE are means over everything (batch, channels, height, width);
KL is summed over the latent dimensions and averaged over the batch, in nats per image. On that scale the Gaussian ELBO
of unit variance has kl_weight / rec_weight = 1 / (3 S^2), that is 8.1e-5 at 64 pixels, without feature terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from trainer.config import TrainConfig
from trainer.model import Output
from trainer.perceptual import PerceptualLoss


def kl_divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, exp(log_var)) || N(0, I)) per image and dimension, nats (paper, equation 1).

    Args:
        mu: (B, D) float.
        log_var: (B, D) float.

    Returns:
        (B, D), each at least 0.
    """
    return -0.5 * (1 + log_var - mu.square() - log_var.exp())


@dataclass(frozen=True)
class Terms:
    """One evaluation of the loss.

    Attributes:
        total: what is minimised; the only part with a gradient.
        pixel: MSE of the images in [0, 1].
        features: MSE of the activations, one a tap, on the scale of `PerceptualLoss`.
        kl: nats per image.
    """

    total: Tensor
    pixel: Tensor
    features: dict[str, Tensor]
    kl: Tensor

    def named(self) -> dict[str, float]:
        """The parts as numbers, for logs."""
        taps = {f"feature/{tap}": float(term) for tap, term in self.features.items()}
        return {"total": float(self.total.detach()), "pixel": float(self.pixel), **taps, "kl": float(self.kl)}


class Loss:
    """The weighted sum of pixel, feature and KL terms."""

    def __init__(self, config: TrainConfig, perceptual: PerceptualLoss | None) -> None:
        self.config = config
        self.perceptual = perceptual

    def __call__(self, images: Tensor, output: Output, progress: float = 1.0) -> Terms:
        """Compares images with their reconstructions.

        Args:
            images: (B, 3, S, S) float in [0, 1].
            output: what the VAE made of them.
            progress: share of the run's steps that are done, for the KL warm-up.
        """
        config = self.config
        pixel = F.mse_loss(output.images, images)
        kl = kl_divergence(output.mu, output.log_var).sum(1).mean()
        reconstruction, features = pixel, {}
        if self.perceptual is not None:
            judged = math.ceil(config.feature_share * len(images))
            distance, terms = self.perceptual(output.images[:judged], images[:judged])
            reconstruction = pixel + config.feature_weight * distance
            features = dict(zip(self.perceptual.scales, terms.unbind(), strict=True))
        warm = min(1.0, progress / config.kl_warmup) if config.kl_warmup else 1.0
        total = 0.5 * config.rec_weight * reconstruction + config.kl_weight * warm * kl
        return Terms(total, pixel.detach(), features, kl.detach())
