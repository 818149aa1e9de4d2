"""The trained networks that some measures look through: from a file, the hub cache or a download.

Random weights never stand in for trained ones here: without those, the measure is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.models import AlexNet_Weights

from trainer.config import RANDOM
from trainer.errors import ConfigError
from trainer.evaluation.skipped import SkippedError
from trainer.hardware.device import Placement
from trainer.loss import pretrained
from trainer.loss.vgg import Backbone, FeatureExtractor, load_backbone

VGG_TAPS = ("relu1_1", "relu2_1", "relu3_1")
"""Those of the paper's VAE-123, whatever a run was trained with, so that all runs are measured by one yardstick."""
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)

BACKBONES: dict[tuple[int, ...], tuple[Literal["alex", "vgg"], str]] = {
    (64, 3, 11, 11): ("alex", "AlexNet"),
    (64, 3, 3, 3): ("vgg", "VGG16"),
}
"""LPIPS's name of a network and its own, by the shape of its first kernels."""
NetworkT = TypeVar("NetworkT")


@dataclass(frozen=True)
class MetricNetwork(Generic[NetworkT]):
    """A network to measure with, or the reason why there is none.

    Attributes:
        network: None where there is none.
        description: of the network and its weights, or the reason.
    """

    network: NetworkT | None
    description: str

    @classmethod
    def of(cls, load: Callable[[Path | None], tuple[NetworkT, str]], weights: Path | None) -> MetricNetwork[NetworkT]:
        """What a loader of this module finds.

        Raises:
            ConfigError: the file of weights is missing or does not fit.
        """
        try:
            return cls(*load(weights))
        except SkippedError as reason:
            return cls(None, str(reason))

    def get(self) -> NetworkT:
        """The network.

        Raises:
            SkippedError: there is none.
        """
        if self.network is None:
            raise SkippedError(self.description)
        return self.network


class Features(nn.Module):
    """VGG19's activations, frozen: what feature distances compare. A module, as torchmetrics asks for one.

    Attributes:
        taps: their names, in order of depth.
        num_features: length of what `forward` gives.
    """

    def __init__(self, backbone: Backbone, place: Placement) -> None:
        super().__init__()
        self._extractor = FeatureExtractor(backbone.layers, tuple(backbone.taps.values()), place.device, place.dtype)
        self.taps = tuple(backbone.taps)
        self.num_features: int = [layer for layer in backbone.layers if isinstance(layer, nn.Conv2d)][-1].out_channels

    def maps(self, images: Tensor) -> list[Tensor]:
        """The activations of images (B, 3, S, S) in [0, 1] at each tap, (B, C, h, w) float32."""
        return [activation.float() for activation in self._extractor.features(images)]

    def forward(self, images: Tensor) -> Tensor:
        """The deepest tap, averaged over the picture: (B, num_features) float32."""
        return self.maps(images)[-1].mean((2, 3))


def _fetch(url: str, network: str, flag: str) -> dict[str, Any]:
    """Published weights, from the hub cache or a download.

    Raises:
        SkippedError: they cannot be had.
    """
    try:
        return pretrained.fetch(url)
    except pretrained.UnavailableError as error:
        raise _without(network, error, flag) from error


def _without(network: str, error: pretrained.UnavailableError, flag: str) -> SkippedError:
    return SkippedError(f"needs trained {network} weights: {error.reason}; or give a file of them with {flag}")


def vgg19(weights: Path | None, place: Placement) -> tuple[Features, str]:
    """VGG19 up to relu3_1.

    Args:
        weights: a file in torchvision's layout; default: torchvision's ImageNet weights.
        place: where to compute, and in which arithmetic.

    Returns:
        The network, and where its weights are from.

    Raises:
        SkippedError: there are none.
        ConfigError: the file is missing or does not fit.
    """
    if weights == RANDOM:
        raise ConfigError("--vgg-weights random: measures nothing that could be compared; give a file, or --skip vgg")
    try:
        backbone = load_backbone(VGG_TAPS, weights, seed=0)
    except pretrained.UnavailableError as error:
        raise _without("VGG19", error, "--vgg-weights (torchvision's layout, up to relu3_1 will do)") from error
    return Features(backbone, place), backbone.source


def lpips(weights: Path | None) -> tuple[nn.Module, str]:
    """LPIPS (Zhang et al., arXiv 1801.03924): its linear heads come with torchmetrics, its backbone is found here.

    Args:
        weights: a file with the backbone's weights, AlexNet or VGG16 in torchvision's layout; default: torchvision's
            AlexNet.

    Returns:
        The network, in evaluation mode, and a description of it.

    Raises:
        SkippedError: there are no weights.
        ConfigError: the file is missing or holds neither network.
    """
    if weights is not None:
        state = pretrained.read(weights, "--lpips-weights")
        source = f"the file {weights.name}"
    else:
        state = _fetch(AlexNet_Weights.IMAGENET1K_V1.url, "AlexNet", "--lpips-weights (AlexNet or VGG16)")
        source = "torchvision, ImageNet (IMAGENET1K_V1)"
    first = state.get("features.0.weight")
    shape = tuple(first.shape) if isinstance(first, Tensor) else ()
    if shape not in BACKBONES:
        raise ConfigError(f"--lpips-weights {weights}: holds neither AlexNet nor VGG16 in torchvision's layout")
    net, name = BACKBONES[shape]
    network = _NoTrainLpips(net=net, pnet_rand=True)  # the public class would download the backbone
    names = {key: f"features.{key.split('.', 1)[1]}" for key in network.net.state_dict()}  # slice1.0.weight
    try:
        network.net.load_state_dict({key: state[feature] for key, feature in names.items()})
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"--lpips-weights {weights}: does not fit {name}: {error}") from error
    return network, f"LPIPS v0.1, {name} weights from {source}"


def inception(weights: Path | None) -> tuple[FrechetInceptionDistance, str]:
    """An empty FID (Heusel et al., arXiv 1706.08500) over the TensorFlow Inception's 2048 pooled features.

    Args:
        weights: torch-fidelity's file, pt_inception or weights-inception-2015-12-05; default: the same, downloaded.

    Returns:
        The metric, and a description of its network.

    Raises:
        SkippedError: there are no weights.
        ConfigError: the file is missing or does not fit.
    """
    if weights is None:
        _fetch(INCEPTION_URL, "torch-fidelity's Inception", "--inception-weights")
    else:
        pretrained.read(weights, "--inception-weights")  # refuses anything but tensors, which torch-fidelity would not
    path = weights or pretrained.cached(INCEPTION_URL)
    try:
        metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(path), reset_real_features=False)
    except RuntimeError as error:
        raise ConfigError(f"--inception-weights {path}: does not fit torch-fidelity's Inception: {error}") from error
    return metric, f"Inception v3 of TensorFlow, 2048 pooled features, torch-fidelity's weights {path.name}"
