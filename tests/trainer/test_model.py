import itertools

import pytest
import torch
from runs import FORMS
from torch import nn

from trainer.config import ModelConfig
from trainer.errors import ConfigError
from trainer.model import VAE
from trainer.presets import PRESETS


def kernels(module: nn.Module) -> list[tuple[str, int, int, tuple[int, ...], tuple[int, ...]]]:
    return [
        (type(part).__name__, part.in_channels, part.out_channels, tuple(part.kernel_size), tuple(part.stride))
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
    ]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_reconstructs_in_its_own_size(form: ModelConfig) -> None:
    torch.manual_seed(0)
    model = VAE(form)
    images = torch.rand(2, 3, form.image_size, form.image_size)
    output = model(images, torch.randn(2, form.latent_dim))
    assert output.images.shape == images.shape
    assert output.mu.shape == output.log_var.shape == (2, form.latent_dim)
    assert bool(((output.images >= 0) & (output.images <= 1)).all())
    output.images.sum().backward()
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert used == {name for name, _ in model.named_parameters()}


def test_the_seeds_network() -> None:
    """Five blocks 32..512, 3x3 with stride 2, to 512x2x2; the mirror image; a 3x3 convolution to RGB."""
    model = VAE(PRESETS["seed"]().model)
    widths = [3, 32, 64, 128, 256, 512]
    assert kernels(model.encoder) == [("Conv2d", a, b, (3, 3), (2, 2)) for a, b in itertools.pairwise(widths)]
    up = [512, 256, 128, 64, 32, 32]
    assert kernels(model.decoder) == [
        *[("ConvTranspose2d", a, b, (3, 3), (2, 2)) for a, b in itertools.pairwise(up)],
        ("Conv2d", 32, 3, (3, 3), (1, 1)),
    ]
    assert (model.encoder.mu.in_features, model.encoder.mu.out_features) == (2048, 128)
    assert (model.decoder.linear.in_features, model.decoder.linear.out_features) == (128, 2048)


@pytest.mark.parametrize("preset", ["paper-123", "paper-345"])
def test_the_papers_network(preset: str) -> None:
    """Four 4x4 convolutions 32..256 with stride 2; four times nearest x2 and a 3x3 convolution; 100 latents."""
    model = VAE(PRESETS[preset]().model)
    widths = [3, 32, 64, 128, 256]
    assert kernels(model.encoder) == [("Conv2d", a, b, (4, 4), (2, 2)) for a, b in itertools.pairwise(widths)]
    up = [256, 128, 64, 32, 3]
    assert kernels(model.decoder) == [("Conv2d", a, b, (3, 3), (1, 1)) for a, b in itertools.pairwise(up)]
    assert sum(isinstance(part, nn.Upsample) for part in model.decoder.modules()) == 4
    assert all(part.padding_mode == "replicate" for part in model.decoder.modules() if isinstance(part, nn.Conv2d))
    assert (model.encoder.mu.in_features, model.encoder.mu.out_features) == (4096, 100)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image_size": 48}, r"--image-size 48: .* multiple of 32"),
        ({"image_size": 0}, "--image-size 0"),
        ({"channels": (8, 8)}, "--channels 8 8: must be three to six"),
        ({"channels": (8, 8, 0)}, "--channels 8 8 0"),
        ({"latent_dim": 0}, "--latent-dim 0"),
        ({"kernel_size": 5}, "--kernel-size 5: must be 3 or 4"),
        ({"decoder": "bilinear"}, "--decoder bilinear"),
    ],
)
def test_sizes_that_no_network_has_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ModelConfig(**values)  # type: ignore[arg-type]


def test_the_seeds_training_is_as_its_document_says() -> None:
    config = PRESETS["seed"]()
    assert (config.batch_size, config.lr, config.schedule, config.lr_gamma, config.epochs) == (
        64,
        0.05,
        "step",
        0.1,
        10,
    )
    assert config.taps == ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    assert (config.crop, config.flip, config.model.image_size, config.model.latent_dim) == (148, True, 64, 128)
    assert (config.pixel_weight, config.feature_weight, config.feature_share, config.kl_warmup) == (1, 1, 1, 0)
    assert config.model.channels == (32, 64, 128, 256, 512)
    assert (config.normalise_features, config.attribute_weight) == (False, 0)


@pytest.mark.parametrize(
    ("preset", "taps"),
    [("paper-123", ("relu1_1", "relu2_1", "relu3_1")), ("paper-345", ("relu3_1", "relu4_1", "relu5_1"))],
)
def test_the_papers_training(preset: str, taps: tuple[str, ...]) -> None:
    config = PRESETS[preset]()
    assert (config.optimizer, config.lr, config.schedule, config.lr_gamma) == ("adam", 5e-4, "step", 0.5)
    assert (config.epochs, config.batch_size, config.taps) == (5, 64, taps)
    assert config.pixel_weight == 0
    assert config.feature_share == 1


def test_presets_carry_their_own_names() -> None:
    assert {name: make().preset for name, make in PRESETS.items()} == {name: name for name in PRESETS}
    assert {"seed", "paper-123", "paper-345", "plain", "best", "quickstart"} <= PRESETS.keys()
