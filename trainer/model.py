"""The VAE: strided convolutions down to a posterior, and from a latent back up; in the seed's form or the paper's.

Shapes: B batch, A attributes, D latent_dim, S image_size, L blocks, C channels[-1], s = S / 2^L.
"""

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig

INITIAL_LOG_VAR = -6.0
"""Log variance that training starts from: next to no noise, so that the decoder sees clear latents from the start."""


class Posterior(NamedTuple):
    """Mean and log variance of q(z|x), each (B, D) float32."""

    mu: Tensor
    log_var: Tensor


class Output(NamedTuple):
    """What one pass returns."""

    images: Tensor  # (B, 3, S, S) float32 in [0, 1]
    mu: Tensor  # (B, D) float32, mean of q(z|x)
    log_var: Tensor  # (B, D) float32, its log variance
    latents: Tensor  # (B, D) float32, the z that was decoded


def _block(*layers: nn.Module, channels: int) -> nn.Sequential:
    """Layers that end with some channels, normalised and rectified."""
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.LeakyReLU())


def _down(before: int, after: int, kernel_size: int) -> nn.Sequential:
    return _block(nn.Conv2d(before, after, kernel_size, stride=2, padding=1), channels=after)


def _up_transposed(before: int, after: int, kernel_size: int) -> nn.Sequential:
    extra = 4 - kernel_size  # which doubles the size exactly
    convolution = nn.ConvTranspose2d(before, after, kernel_size, stride=2, padding=1, output_padding=extra)
    return _block(convolution, channels=after)


def _up_nearest(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel_size=3, padding=1, padding_mode="replicate")
    return _block(nn.Upsample(scale_factor=2), convolution, channels=after)


class Encoder(nn.Module):
    """Images to the posterior: L blocks Conv stride 2 + BatchNorm + LeakyReLU, then two linear heads (seed, paper)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = (3, *config.channels)
        features = math.prod(config.bottleneck)
        self.blocks = nn.Sequential(*(_down(a, b, config.kernel_size) for a, b in pairwise(widths)))
        self.mu = nn.Linear(features, config.latent_dim)
        self.log_var = nn.Linear(features, config.latent_dim)

    def forward(self, images: Tensor) -> Posterior:
        """Encodes images (B, 3, S, S) float in [0, 1]."""
        features = self.blocks(images).flatten(1)  # (B, C*s*s)
        return Posterior(self.mu(features), self.log_var(features))


class Decoder(nn.Module):
    """Latents to images: linear, L times doubled in size, sigmoid.

    transposed (seed): L blocks ConvTranspose stride 2 + BatchNorm + LeakyReLU, then Conv 3x3 to RGB.
    nearest (paper): L - 1 blocks nearest x2 + replicating Conv 3x3 + BatchNorm + LeakyReLU, then x2 + Conv to RGB.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.shape = config.bottleneck
        self.linear = nn.Linear(config.latent_dim, math.prod(self.shape))
        widths = tuple(reversed(config.channels))
        if config.decoder == "transposed":
            widths = (*widths, config.channels[0])
            self.blocks = nn.Sequential(*(_up_transposed(a, b, config.kernel_size) for a, b in pairwise(widths)))
        else:
            self.blocks = nn.Sequential(*(_up_nearest(a, b) for a, b in pairwise(widths)), nn.Upsample(scale_factor=2))
        padding: Literal["zeros", "replicate"] = "zeros" if config.decoder == "transposed" else "replicate"
        self.to_rgb = nn.Conv2d(config.channels[0], 3, kernel_size=3, padding=1, padding_mode=padding)

    def forward(self, latents: Tensor) -> Tensor:
        """Decodes latents (B, D) to images (B, 3, S, S) in [0, 1]."""
        features = self.linear(latents).reshape(-1, *self.shape)  # (B, C, s, s)
        return torch.sigmoid(self.to_rgb(self.blocks(features)))


class VAE(nn.Module):
    """Encoder and decoder with the reparameterised sample between them (paper, section 3; seed).

    Weights start as PyTorch's layers do, and the posterior at `INITIAL_LOG_VAR`; the seed leaves this open.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        nn.init.zeros_(self.encoder.log_var.weight)
        nn.init.constant_(self.encoder.log_var.bias, INITIAL_LOG_VAR)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Output:
        """Reconstructs images.

        Args:
            images: (B, 3, S, S) float in [0, 1].
            noise: (B, D) standard normal for z = mu + exp(log_var / 2) * noise; None decodes mu itself.
        """
        mu, log_var = self.encoder(images)
        mu, log_var = mu.float(), log_var.float()
        latents = mu if noise is None else mu + torch.exp(0.5 * log_var) * noise
        return Output(self.decoder(latents).float(), mu, log_var, latents)

    @torch.no_grad()
    def shift_and_scale_latents(self, mean: Tensor, std: Tensor) -> None:
        """Changes the weights so that what was the latent z is (z - mean) / std, and all images stay what they were.

        Both are (D,) float64, std above 0.
        """
        encoder, linear = self.encoder, self.decoder.linear
        mean, std = mean.to(linear.weight.device), std.to(linear.weight.device)
        linear.bias.add_(linear.weight.double() @ mean)
        linear.weight.mul_(std)
        encoder.mu.bias.copy_((encoder.mu.bias.double() - mean) / std)
        encoder.mu.weight.div_(std[:, None])
        encoder.log_var.bias.sub_(2 * std.log())


class VAEWithHead(nn.Module):
    """All that is trained, as one module: a VAE and, where labels shape its latents, a linear attribute head.

    The head pulls every attribute onto a straight direction of the latent space, which makes it easier to read and to
    edit. It is no part of the VAE and is thrown away after training. It is this project's, not the paper's.

    Args:
        vae: the model.
        num_attributes: A; 0 for no head.

    Attributes:
        head: z (B, D) to logits (B, A), or None.
    """

    def __init__(self, vae: VAE, num_attributes: int) -> None:
        super().__init__()
        self.vae = vae
        self.head = nn.Linear(vae.config.latent_dim, num_attributes) if num_attributes else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Output, Tensor | None]:
        """What the VAE gives for the same arguments, and logits (B, A) float32 of the latents if there is a head."""
        output: Output = self.vae(images, noise)
        return output, None if self.head is None else self.head(output.latents).float()


def freeze_biases_before_batch_norm(model: nn.Module) -> None:
    """Leaves out of training the biases that a batch norm follows at once: it takes them away again.

    Their gradient is zero but for rounding, along which Adam would walk them, and takes time.
    """
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for layer, following in pairwise(module):
                if isinstance(following, nn.BatchNorm2d) and isinstance(layer.bias, nn.Parameter):
                    layer.bias.requires_grad_(False)
