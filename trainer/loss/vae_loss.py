"""The loss of the seed document, its parts named.

    loss = 0.5 * rec_weight * (pixel_weight * MSE(x, y) + feature_weight * sum_l MSE(phi_l(x), phi_l(y)))
         + kl_weight * KL + attribute_weight * BCE(read-out of z, labels)

with the inner weights 1 and the last 0 in the seed. Reductions: both MSE are means over everything (batch, channels,
height, width); KL is summed over the latent dimensions and averaged over the batch, in nats per image; the
cross-entropy is a mean over attributes and batch, in nats. On that scale the Gaussian ELBO of unit variance has
kl_weight / rec_weight = 1 / (3 S^2), that is 8.1e-5 at 64 pixels, without feature terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import TrainConfig
from trainer.hardware.shard import Shard
from trainer.loss.perceptual import PerceptualLoss
from trainer.model import Output


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
    """One evaluation of the loss; of one process of several, its share of every part.

    Attributes:
        total: what is minimised; the only part with a gradient.
        pixel: MSE of the images in [0, 1].
        features: MSE of the activations, one a tap, on the scale of `PerceptualLoss`.
        kl: nats per image.
        attributes: cross-entropy of the attributes read off z, nats; None without a read-out.
    """

    total: Tensor
    pixel: Tensor
    features: dict[str, Tensor]
    kl: Tensor
    attributes: Tensor | None = None

    def named(self, add: Callable[[Tensor], Tensor] = lambda parts: parts) -> dict[str, float]:
        """The parts as numbers, for logs.

        Args:
            add: sums the parts of several processes up.
        """
        taps = {f"feature/{tap}": term for tap, term in self.features.items()}
        attributes = {} if self.attributes is None else {"attributes": self.attributes}
        parts = {"total": self.total.detach(), "pixel": self.pixel, **taps, "kl": self.kl, **attributes}
        return dict(zip(parts, add(torch.stack(list(parts.values()))).tolist(), strict=True))


class Loss:
    """The weighted sum of pixel, feature, KL and attribute terms.

    Args:
        config: the weights.
        perceptual: the feature terms, or None.
        shard: the part of every batch that this process sees.
    """

    def __init__(self, config: TrainConfig, perceptual: PerceptualLoss | None, shard: Shard | None = None) -> None:
        self.config = config
        self.perceptual = perceptual
        self.shard = shard or Shard()

    def __call__(
        self,
        images: Tensor,
        output: Output,
        progress: float = 1.0,
        total: int | None = None,
        labels: Tensor | None = None,
    ) -> Terms:
        """Compares images with their reconstructions.

        Args:
            images: (b, 3, S, S) float in [0, 1]; b is 0 where a batch has fewer images than there are processes.
            output: what the VAE made of them.
            progress: share of the run's steps that are done, for the KL warm-up.
            total: images in the whole batch, over all processes; None: these.
            labels: (b, A) float32, 1 where an image has an attribute; needed where `output` has logits.
        """
        config = self.config
        total = len(images) if total is None else total
        pixel = F.mse_loss(output.images, images, reduction="sum") / (total * images.shape[1:].numel())
        kl = kl_divergence(output.mu, output.log_var).sum() / total
        reconstruction, features = config.pixel_weight * pixel, {}
        if self.perceptual is not None:
            judged_in_all = math.ceil(config.feature_share * total)
            judged = self.shard.count(judged_in_all)
            terms = torch.zeros(len(self.perceptual.scales), device=images.device)
            if judged:
                share = judged / judged_in_all
                distance, terms = self.perceptual(output.images[:judged], images[:judged])
                reconstruction, terms = reconstruction + config.feature_weight * share * distance, terms * share
            features = dict(zip(self.perceptual.scales, terms.unbind(), strict=True))
        warm = min(1.0, progress / config.kl_warmup) if config.kl_warmup else 1.0
        loss = 0.5 * config.rec_weight * reconstruction + config.kl_weight * warm * kl
        if output.logits is None or labels is None:
            return Terms(loss, pixel.detach(), features, kl.detach())
        entropy = F.binary_cross_entropy_with_logits(output.logits, labels, reduction="sum")
        attributes = entropy / (total * labels.shape[1])
        loss = loss + config.attribute_weight * attributes
        return Terms(loss, pixel.detach(), features, kl.detach(), attributes.detach())
