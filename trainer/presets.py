"""Named configurations, each a function that gives the fields whose defaults it departs from.

Any field can be overridden on the command line.
"""

from collections.abc import Callable
from dataclasses import replace

from trainer.config import ModelConfig, TrainConfig


def seed() -> TrainConfig:
    """Everything that the seed document states: its network, transforms, loss, lr 0.05 times 0.1 an epoch, 10 epochs.

    What it leaves open is chosen so that all of this trains (`benchmarks/reports/` has the measurements):

    - optimizer: Muon for the kernels inside the network and SGD with momentum 0.9 for everything else, both at 0.05,
      which is a usual rate for either; gradients are clipped to norm 1. Adam's first step at 0.05 moves every weight by
      that much, and log variances so far that their exponential overflows; with SGD alone the few epochs before the
      schedule has lowered the rate are not enough.
    - the five maps: relu1_1 to relu5_1, which are the paper's VAE-123 and VAE-345 together.
    - rec_weight: 1. kl_weight: 1e-2, a compromise between sharp reconstructions and samples from N(0, I) that are
      faces. At 1 the terms, one a mean over pixels and the other a sum over latents, are out of proportion: nothing is
      reconstructed.
    - initialisation: as `trainer.model` says. Log variances start at -6 and need no bound.
    - what is sampled: latents are standardised when training ends, which changes no image, so that "just sample from a
      normal distribution" gives faces.
    - the sigmoid at the end, and LeakyReLU's slope, which is PyTorch's.
    """
    return TrainConfig(preset="seed", optimizer="muon-sgd", muon_lr=0.05, grad_clip=1.0, kl_weight=1e-2)


def plain() -> TrainConfig:
    """A VAE without the perceptual term, the baseline: the seed's network and data, one-cycle Adam."""
    return TrainConfig(preset="plain", taps=(), kl_weight=1e-5, lr=2e-3, schedule="one-cycle", grad_clip=1.0)


def _paper(name: str, taps: tuple[str, ...]) -> TrainConfig:
    """The paper's network, optimiser and loss (Hou et al., arXiv 1610.00291, sections 3 and 4).

    Four blocks of 4x4 convolutions down, four times nearest x2 and a replicating 3x3 convolution up, 100 latents;
    Adam at 5e-4, halved after each epoch, 5 epochs, batch 64; KL and feature terms, no pixel term.

    Departures, each for a reason. The paper weighs features on the scale of Caffe's VGG19, whose inputs run to 255;
    no factor carries its weights over to other VGG19 files, so each tap is scaled to a mean activation of one, and the
    KL weight is set anew, such that the KL is about 65 nats an image on real faces. Images are cropped and flipped as
    in the seed, LeakyReLU and the sigmoid at the end are the seed's too, and directions are of posterior means over the
    whole train split rather than of samples over 1,000 images.
    """
    return TrainConfig(
        preset=name,
        model=ModelConfig(latent_dim=100, channels=(32, 64, 128, 256), kernel_size=4, decoder="nearest"),
        taps=taps,
        pixel_weight=0.0,
        normalise_features=True,
        kl_weight=5e-3,
        lr=5e-4,
        lr_gamma=0.5,
        epochs=5,
    )


def paper_123() -> TrainConfig:
    """The paper's VAE-123: features at relu1_1, relu2_1 and relu3_1; its network, Adam at 5e-4 halved each epoch."""
    return _paper("paper-123", ("relu1_1", "relu2_1", "relu3_1"))


def paper_345() -> TrainConfig:
    """The paper's VAE-345: features at relu3_1, relu4_1 and relu5_1; its network, Adam at 5e-4 halved each epoch."""
    return _paper("paper-345", ("relu3_1", "relu4_1", "relu5_1"))


def quickstart() -> TrainConfig:
    """Minutes on two CPU cores: the seed's network and transforms, and what gets furthest in that time.

    Departures from the seed: the maps are those of the paper's VAE-123, cheap at 64 pixels; their activations are
    scaled to a mean of one and weighted to stay beside the pixel term, so that any VGG19 weights will do, random ones
    included; they are compared on an eighth of each batch, an unbiased estimate at a fraction of the time. An attribute
    head pulls the attributes onto straight directions, and directions are adjusted for other attributes. Muon beside
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
        attribute_weight=3e-2,
        directions="adjusted",
        optimizer="muon",
        muon_lr=0.06,
        lr=2e-3,
        schedule="one-cycle",
        epochs=6,
    )


def best() -> TrainConfig:
    """What measurements on real faces show to be best for editing; `benchmarks/reports/` says what was tried.

    `quickstart` and its departures from the seed, at greater length, and: 256 latents, from which attributes are read
    more exactly; kernels of 4, which leave no checkerboard; features compared on half of each batch; a smaller KL
    weight: with 37,540 faces reconstructions, samples from the stored prior and what is read off mu get better, at
    equal edits, and samples straight from N(0, I) worse.
    """
    return replace(
        quickstart(),
        preset="best",
        model=ModelConfig(latent_dim=256, kernel_size=4),
        feature_share=0.5,
        kl_weight=4e-6,
        epochs=20,
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    make().preset: make for make in (seed, paper_123, paper_345, plain, best, quickstart)
}
