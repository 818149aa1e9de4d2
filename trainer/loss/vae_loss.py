"""The loss of the seed document, its parts named.

    loss = 0.5 * rec_weight * (pixel_weight * MSE(x, y) + feature_weight * sum_l MSE(phi_l(x), phi_l(y)))
         + kl_weight * KL + attribute_weight * BCE(attribute head of z, labels)

with the inner weights 1 and the last 0 in the seed. Reductions: both MSE are means over everything (batch, channels,
height, width); KL is summed over the latent dimensions and averaged over the batch, in nats per image; the
cross-entropy is a mean over attributes and batch, in nats. On that scale the Gaussian ELBO of unit variance has
kl_weight / rec_weight = 1 / (3 S^2), that is 8.1e-5 at 64 pixels, without feature terms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import TrainConfig
from trainer.hardware.distributed import Processes
from trainer.loss.perceptual import PerceptualLoss
from trainer.model import Output


def kl_divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, exp(log_var)) || N(0, I)) per image and dimension, nats (paper, equation 1): (B, D), each at least 0."""
    return -0.5 * (1 + log_var - mu.square() - log_var.exp())


@dataclass(frozen=True)
class Terms:
    """One evaluation of the loss; of one process of several, its part of every sum."""

    total: Tensor  # what is minimised; the only part with a gradient
    pixel: Tensor  # MSE of the images in [0, 1]
    features: dict[str, Tensor]  # MSE of the activations, one a tap, on the scale of `PerceptualLoss`
    kl: Tensor  # nats per image
    attributes: Tensor | None = None  # cross-entropy of the attribute head, nats; None without one

    def named(self, add: Callable[[Tensor], Tensor] = lambda parts: parts) -> dict[str, float]:
        """The parts as numbers, for logs; `add` sums those of several processes up."""
        taps = {f"feature/{tap}": term for tap, term in self.features.items()}
        attributes = {} if self.attributes is None else {"attributes": self.attributes}
        parts = {"total": self.total.detach(), "pixel": self.pixel, **taps, "kl": self.kl, **attributes}
        return dict(zip(parts, add(torch.stack(list(parts.values()))).tolist(), strict=True))


class VAELoss:
    """The weighted sum of pixel, feature, KL and attribute terms.

    Args:
        config: the weights.
        perceptual: the feature terms, or None.
        processes: those that compute a batch together; None: this one alone.
    """

    def __init__(
        self, config: TrainConfig, perceptual: PerceptualLoss | None, processes: Processes | None = None
    ) -> None:
        self.config = config
        self.perceptual = perceptual
        self.processes = processes or Processes()

    def num_compared(self, total: int) -> tuple[int, int]:
        """Images of a batch of `total` that the feature terms look at: of this process, and of all."""
        in_all = math.ceil(self.config.feature_share * total) if self.perceptual else 0
        return len(range(self.processes.rank, in_all, self.processes.world_size)), in_all

    def __call__(
        self,
        images: Tensor,
        output: Output,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        progress: float = 1.0,
        total: int | None = None,
    ) -> Terms:
        """Compares images with their reconstructions.

        Args:
            images: (b, 3, S, S) float in [0, 1]; b is 0 where a batch has fewer images than there are processes.
            output: what the VAE made of them.
            logits: (b, A) float32, of the attribute head, or None.
            labels: (b, A) float32, 1 where an image has an attribute; needed where there are logits.
            progress: fraction of the run's steps that are done, for the KL warm-up.
            total: images in the whole batch, over all processes; None: these.
        """
        config = self.config
        total = len(images) if total is None else total
        pixel = F.mse_loss(output.images, images, reduction="sum") / (total * images.shape[1:].numel())
        kl = kl_divergence(output.mu, output.log_var).sum() / total
        reconstruction, features = config.pixel_weight * pixel, {}
        if self.perceptual is not None:
            compared, compared_in_all = self.num_compared(total)
            terms = torch.zeros(len(self.perceptual.scales), device=images.device)
            if compared:
                fraction = compared / compared_in_all
                distance, terms = self.perceptual(output.images[:compared], images[:compared])
                reconstruction, terms = reconstruction + config.feature_weight * fraction * distance, terms * fraction
            features = dict(zip(self.perceptual.scales, terms.unbind(), strict=True))
        warm = min(1.0, progress / config.kl_warmup) if config.kl_warmup else 1.0
        loss = 0.5 * config.rec_weight * reconstruction + config.kl_weight * warm * kl
        if logits is None or labels is None:
            return Terms(loss, pixel.detach(), features, kl.detach())
        entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        attributes = entropy / (total * labels.shape[1])
        loss = loss + config.attribute_weight * attributes
        return Terms(loss, pixel.detach(), features, kl.detach(), attributes.detach())
