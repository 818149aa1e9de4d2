import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import AlexNet_Weights, VGG19_Weights, vgg19

from trainer.config import RANDOM, VGG19_TAPS
from trainer.errors import ConfigError
from trainer.evaluation import networks
from trainer.loss import vgg
from trainer.loss.vgg import Backbone, check_weights, load_backbone


def weight(backbone: Backbone, position: int = 0) -> torch.Tensor:
    tensor: torch.Tensor = backbone.layers.state_dict()[f"{position}.weight"]
    return tensor


def test_every_tap_is_a_relu_of_the_right_block() -> None:
    """relu3_2 is the ReLU after the second convolution after the second pooling."""
    with torch.device("meta"):
        layers = vgg19(weights=None).features
    for tap in VGG19_TAPS:
        position = vgg._position(tap)
        before = list(layers[: position + 1])
        block = 1 + sum(isinstance(layer, nn.MaxPool2d) for layer in before)
        last_pool = max((i for i, layer in enumerate(before) if isinstance(layer, nn.MaxPool2d)), default=-1)
        convolution = sum(isinstance(layer, nn.Conv2d) for layer in before[last_pool + 1 :])
        assert isinstance(layers[position], nn.ReLU)
        assert tap == f"relu{block}_{convolution}"


def test_layers_and_addresses_are_torchvisions() -> None:
    with torch.device("meta"):
        expected = vgg19(weights=None).features
    plain = [str(layer).replace(", inplace=True", "").replace("inplace=True", "") for layer in expected]
    assert [str(layer) for layer in vgg._layers()] == plain
    assert VGG19_Weights.IMAGENET1K_V1.url == vgg.IMAGENET_URL
    assert AlexNet_Weights.IMAGENET1K_V1.url == networks.ALEXNET_URL


def test_weights_from_a_file_that_ends_at_the_deepest_tap(tmp_path: Path) -> None:
    with torch.device("meta"):
        layers = vgg19(weights=None).features[:12]
    state = {f"features.{name}": torch.randn(tensor.shape) for name, tensor in layers.state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    backbone = load_backbone(("relu3_1", "relu1_1"), tmp_path / "vgg.pth", seed=0)
    assert list(backbone.taps.items()) == [("relu1_1", 1), ("relu3_1", 11)]
    assert "vgg.pth" in backbone.source
    assert torch.equal(weight(backbone, 10), state["features.10.weight"])
    assert not any(parameter.requires_grad for parameter in backbone.layers.parameters())
    with pytest.raises(ConfigError, match=r"lacks features\.12\.weight; .*shallower --taps"):
        load_backbone(("relu4_1",), tmp_path / "vgg.pth", seed=0)


@pytest.mark.parametrize("content", [None, b"", b"no weights at all"])
def test_a_bad_weights_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "vgg.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--vgg-weights .*vgg\.pth"):
        load_backbone(("relu1_1",), path, seed=0)


def test_random_weights_are_those_of_the_seed() -> None:
    first, again, other = (load_backbone(("relu2_1",), RANDOM, seed=seed) for seed in (5, 5, 6))
    assert "random weights (seed 5)" in first.source
    assert torch.equal(weight(first), weight(again))
    assert not torch.equal(weight(first), weight(other))


def test_random_weights_leave_the_callers_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_backbone(("relu1_1",), RANDOM, seed=5)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.usefixtures("offline")
def test_weights_that_cannot_be_had_are_not_replaced() -> None:
    for use in (load_backbone, check_weights_of):
        with pytest.raises(ConfigError) as refused:
            use(("relu1_1",), None, seed=0)
        for word in (
            "checkpoints/vgg19-dcbb9e9d.pth does not exist",
            "does not answer",
            "--vgg-weights FILE",
            "random",
        ):
            assert word in str(refused.value)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("damage", [lambda whole: whole[:1000], lambda whole: whole[:-1] + b"x", lambda _: b""])
def test_a_damaged_file_in_the_cache_is_named_and_left(damage: Callable[[bytes], bytes], cached_vgg: Path) -> None:
    cached_vgg.write_bytes(damage(cached_vgg.read_bytes()))
    before = cached_vgg.read_bytes()
    for use in (load_backbone, check_weights_of):
        with pytest.raises(ConfigError) as refused:
            use(("relu1_1",), None, seed=0)
        assert f"{cached_vgg} is damaged: its SHA-256 begins with " in str(refused.value)
        assert "delete it" in str(refused.value)
        assert "weights_only" not in str(refused.value)
    assert cached_vgg.read_bytes() == before


@pytest.mark.usefixtures("offline")
def test_cached_imagenet_weights_are_found_without_network(cached_vgg: Path) -> None:
    backbone = load_backbone(("relu1_1",), None, seed=0)
    assert "ImageNet" in backbone.source
    assert torch.equal(weight(backbone), torch.load(cached_vgg)["features.0.weight"])
    assert check_weights(("relu1_1",), None) == f"torchvision's ImageNet weights, cached at {cached_vgg}"


def check_weights_of(taps: tuple[str, ...], weights: Path | None, seed: int) -> str:
    return check_weights(taps, weights)


@pytest.fixture
def cached_vgg(offline: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in the hub cache, whose name ends with the hash of what it holds."""
    state = {f"features.0.{name}": tensor for name, tensor in nn.Conv2d(3, 64, 3).state_dict().items()}
    content = io.BytesIO()
    torch.save(state, content)
    name = f"vgg19-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.pth"
    monkeypatch.setattr(vgg, "IMAGENET_URL", f"https://download.example/{name}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content.getvalue())
    return path
