import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import vgg19

from trainer import perceptual
from trainer.config import VGG19_TAPS
from trainer.errors import ConfigError
from trainer.perceptual import Backbone, load_backbone


def weight(backbone: Backbone, position: int = 0) -> torch.Tensor:
    tensor: torch.Tensor = backbone.layers.state_dict()[f"{position}.weight"]
    return tensor


def test_every_tap_is_a_relu_of_the_right_block() -> None:
    """relu3_2 is the ReLU after the second convolution after the second pooling."""
    layers = vgg19(weights=None).features
    for tap in VGG19_TAPS:
        position = perceptual._position(tap)
        before = list(layers[: position + 1])
        block = 1 + sum(isinstance(layer, nn.MaxPool2d) for layer in before)
        last_pool = max((i for i, layer in enumerate(before) if isinstance(layer, nn.MaxPool2d)), default=-1)
        convolution = sum(isinstance(layer, nn.Conv2d) for layer in before[last_pool + 1 :])
        assert isinstance(layers[position], nn.ReLU)
        assert tap == f"relu{block}_{convolution}"


def test_weights_from_a_file_that_ends_at_the_deepest_tap(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = {f"features.{name}": tensor for name, tensor in vgg19(weights=None).features[:12].state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    backbone = load_backbone(("relu3_1", "relu1_1"), tmp_path / "vgg.pth", seed=0)
    assert list(backbone.taps.items()) == [("relu1_1", 1), ("relu3_1", 11)]
    assert not backbone.random
    assert "vgg.pth" in backbone.source
    assert torch.equal(weight(backbone, 10), state["features.10.weight"])
    assert not any(parameter.requires_grad for parameter in backbone.layers.parameters())
    with pytest.raises(ConfigError, match=r"lacks features\.12\.weight.*tap shallower"):
        load_backbone(("relu4_1",), tmp_path / "vgg.pth", seed=0)


@pytest.mark.parametrize("content", [None, b"", b"no weights at all"])
def test_a_bad_weights_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "vgg.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--vgg-weights .*vgg\.pth"):
        load_backbone(("relu1_1",), path, seed=0)


@pytest.mark.usefixtures("offline")
def test_without_network_random_weights_are_used_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first = load_backbone(("relu2_1",), None, seed=5)
    assert first.random
    assert "random weights (seed 5)" in first.source
    assert "random weights (seed 5)" in caplog.text
    again, other = (load_backbone(("relu2_1",), None, seed=seed) for seed in (5, 6))
    assert torch.equal(weight(first), weight(again))
    assert not torch.equal(weight(first), weight(other))


@pytest.mark.usefixtures("offline")
def test_random_weights_leave_the_callers_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_backbone(("relu1_1",), None, seed=5)
    assert torch.equal(torch.rand(1), expected)


def test_cached_imagenet_weights_are_found_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = vgg19(weights=None).state_dict()
    monkeypatch.setattr(perceptual, "_imagenet_weights", lambda: state)
    backbone = load_backbone(("relu1_1",), None, seed=0)
    assert "ImageNet" in backbone.source
    assert torch.equal(weight(backbone), state["features.0.weight"])
