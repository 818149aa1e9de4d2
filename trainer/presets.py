"""Named configurations, each a function. Any field can be overridden on the command line."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config import TrainConfig


def seed() -> TrainConfig:
    """The seed document: batch 64, lr 0.05 times 0.1 after each epoch, 10 epochs, five VGG19 maps, its loss."""
    return TrainConfig(preset="seed")


def plain() -> TrainConfig:
    """A VAE without the perceptual term, the baseline: the seed's network and data, one-cycle Adam."""
    return TrainConfig(preset="plain", taps=(), kl_weight=1e-5, lr=2e-3, schedule="one-cycle", epochs=10, grad_clip=1.0)


def quickstart() -> TrainConfig:
    """Minutes on two CPU cores: the seed's network and transforms, and what gets furthest in that time.

    Departures from the seed: the maps are those of the paper's VAE-123, cheap at 64 pixels; their activations are
    scaled to a mean of one and weighted to stay beside the pixel term, so that any VGG19 weights will do, random ones
    included; they are compared on an eighth of each batch, an unbiased estimate at a fraction of the time. Muon beside
    Adam, one-cycle schedule. The KL weight is small, as both terms beside it are means over pixels.
    """
    return TrainConfig(
        preset="quickstart",
        taps=("relu1_1", "relu2_1", "relu3_1"),
        normalise_features=True,
        feature_weight=3e-3,
        feature_share=0.125,
        kl_weight=1e-5,
        kl_warmup=0.1,
        optimizer="muon",
        muon_lr=0.06,
        batch_size=64,
        lr=2e-3,
        schedule="one-cycle",
        epochs=8,
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {"seed": seed, "plain": plain, "quickstart": quickstart}
