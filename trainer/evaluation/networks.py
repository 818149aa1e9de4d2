"""The trained networks that some measures look through: from a file, the hub cache or a download.

Random weights never stand in for trained ones here: without those, the measure is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.models import AlexNet_Weights

from trainer.config import RANDOM
from trainer.errors import ConfigError
from trainer.evaluation import identity
from trainer.evaluation.identity import Recogniser
from trainer.evaluation.options import Options
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

    def get(self) -> NetworkT:
        """The network; raises SkippedError where there is none."""
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


@dataclass(frozen=True)
class MetricNetworks:
    """The networks that are measured with."""

    vgg: MetricNetwork[Features]
    lpips: MetricNetwork[nn.Module]
    inception: MetricNetwork[FrechetInceptionDistance]
    recogniser: MetricNetwork[Recogniser]

    @classmethod
    def of(cls, options: Options, own_vgg: Path | None, place: Placement) -> MetricNetworks:
        """Finds them, in the files that the options name or that the run was trained with (`own_vgg`, VGG19 weights).

        Raises:
            ConfigError: a file of weights is missing or does not fit.
        """

        def find(name: str, load: Callable[[], tuple[NetworkT, str]]) -> MetricNetwork[NetworkT]:
            try:
                if name in options.skip:
                    raise SkippedError(f"left out by --skip {name}")
                return MetricNetwork(*load())
            except SkippedError as reason:
                return MetricNetwork(None, str(reason))

        def vgg() -> tuple[Features, str]:
            if options.vgg_weights is not None or own_vgg is None or not own_vgg.is_file():
                return vgg19(options.vgg_weights, place)
            try:
                return vgg19(own_vgg, place)
            except ConfigError as error:
                raise SkippedError(f"the file that the run was trained with will not do ({error})") from error

        return cls(
            find("vgg", vgg),
            find("lpips", lambda: lpips(options.lpips_weights)),
            find("fid", lambda: inception(options.inception_weights)),
            find("identity", lambda: identity.recogniser(options.identity_weights)),
        )


# The loaders give a network and a description of it. They raise SkippedError where no weights can be had, and
# ConfigError where a file of weights is missing or does not fit.


@contextmanager
def _needed(network: str, flag: str) -> Iterator[None]:
    try:
        yield
    except pretrained.UnavailableError as error:
        reason = f"needs trained {network} weights: {error.reason}; or give a file of them with {flag}"
        raise SkippedError(reason) from error


def vgg19(weights: Path | None, place: Placement) -> tuple[Features, str]:
    """VGG19 up to relu3_1, from a file in torchvision's layout or with torchvision's ImageNet weights."""
    if weights == RANDOM:
        raise ConfigError("--vgg-weights random: measures nothing that could be compared; give a file, or --skip vgg")
    with _needed("VGG19", "--vgg-weights (torchvision's layout, up to relu3_1 will do)"):
        backbone = load_backbone(VGG_TAPS, weights, seed=0)
    return Features(backbone, place), backbone.source


def lpips(weights: Path | None) -> tuple[nn.Module, str]:
    """LPIPS (Zhang et al., arXiv 1801.03924): its linear heads come with torchmetrics, its backbone is found here.

    The backbone is AlexNet or VGG16 from a file in torchvision's layout, by default torchvision's AlexNet.
    """
    if weights is not None:
        state, source = pretrained.read(weights, "--lpips-weights"), f"the file {weights.name}"
    else:
        with _needed("AlexNet", "--lpips-weights (AlexNet or VGG16)"):
            state = pretrained.fetch(AlexNet_Weights.IMAGENET1K_V1.url)
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

    Its weights are torch-fidelity's, weights-inception-2015-12-05, from a file or downloaded.
    """
    if weights is None:
        with _needed("torch-fidelity's Inception", "--inception-weights"):
            pretrained.fetch(INCEPTION_URL)
    else:
        pretrained.read(weights, "--inception-weights")  # refuses anything but tensors, which torch-fidelity would not
    path = weights or pretrained.cached(INCEPTION_URL)
    try:
        metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(path), reset_real_features=False)
    except RuntimeError as error:
        raise ConfigError(f"--inception-weights {path}: does not fit torch-fidelity's Inception: {error}") from error
    return metric, f"Inception v3 of TensorFlow, 2048 pooled features, torch-fidelity's weights {path.name}"
