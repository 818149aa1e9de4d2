"""The trained networks that some measures look through: from a file, the hub cache or a download.

VGG19, LPIPS and TensorFlow's Inception of 2015, which FID and the Inception score look through; face recognition is in
`identity`. Random weights never stand in for trained ones here: without those, the measure is skipped.

Shapes: B batch, N images, S image side, F features; C = 1008 of Inception's classes.
"""

import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from trainer.artifacts.encode import batches
from trainer.config import RANDOM
from trainer.errors import ConfigError
from trainer.evaluation import identity
from trainer.evaluation.encoded_run import Floats, Images
from trainer.evaluation.identity import Recogniser
from trainer.evaluation.options import Options, Resizing
from trainer.evaluation.skipped import SkippedError
from trainer.hardware.device import Placement
from trainer.loss import pretrained
from trainer.loss.vgg import IMAGENET_URL, Backbone, FeatureExtractor, load_backbone
from trainer.run_folder import sha256_of

VGG_TAPS = ("relu1_1", "relu2_1", "relu3_1")
"""Those of the paper's VAE-123, whatever a run was trained with, so that all runs are measured by one yardstick."""
BACKBONES: dict[tuple[int, ...], tuple[Literal["alex", "vgg"], str]] = {
    (64, 3, 11, 11): ("alex", "AlexNet"),
    (64, 3, 3, 3): ("vgg", "VGG16"),
}
"""LPIPS's name of a network and its own, by the shape of its first kernels."""
ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
"""Of torchvision's AlexNet_Weights.IMAGENET1K_V1, whose module takes seconds to import."""
SIDE, NUM_FEATURES = 299, 2048  # of Inception
RESIZE: dict[Resizing, Callable[[Tensor], Tensor]] = {
    "clean": lambda levels: F.interpolate(levels, SIDE, mode="bicubic", antialias=True).clamp(0, 255),
    "tensorflow": lambda levels: interpolate_bilinear_2d_like_tensorflow1x(levels, (SIDE, SIDE), align_corners=False),
}
"""Levels (N, 3, S, S), 0 to 255, to (N, 3, SIDE, SIDE), as Inception takes them."""
NetworkT = TypeVar("NetworkT")


@dataclass(frozen=True)
class MetricNetwork(Generic[NetworkT]):
    """A network to measure with, or the reason why there is none."""

    network: NetworkT | None  # None where there is none
    description: str  # of the network and its weights, or the reason
    sha256: str = ""  # of the file of its weights; empty where there is none

    def get(self) -> NetworkT:
        """The network; raises SkippedError where there is none."""
        if self.network is None:
            raise SkippedError(self.description)
        return self.network

    @property
    def about(self) -> dict[str, str]:
        """What it is, as metrics.json says beside what it saw: `network` and `network_sha256`, of its weights."""
        return {"network": self.description, "network_sha256": self.sha256}


class Features:
    """VGG19's activations, frozen, at some taps in order of depth: what feature distances compare."""

    def __init__(self, backbone: Backbone, place: Placement) -> None:
        self._place = place
        self._extractor = FeatureExtractor(backbone.layers, tuple(backbone.taps.values()), place.device, place.dtype)
        self.taps = tuple(backbone.taps)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The activations of images (B, 3, S, S) in [0, 1] at each tap, (B, C, h, w) float32."""
        return [activation.float() for activation in self._extractor.features(images)]

    @torch.no_grad()
    def describe(self, images: Images) -> Floats:
        """The deepest tap of images (N, S, S, 3), averaged over the picture: (N, F)."""
        some = (self._place.images(images[rows]) for rows in batches(len(images), "VGG19's features"))
        return np.concatenate([self.maps(batch)[-1].mean((2, 3)).cpu().numpy() for batch in some])


class Inception:
    """Inception, frozen, in FP32.

    Its layers take pixels (N, 3, SIDE, SIDE) in [-1, 1] to features (N, F); `classifier` is its last layer's weights,
    (C, F).
    """

    def __init__(self, layers: nn.Module, classifier: Tensor, resizing: Resizing, place: Placement) -> None:
        self._layers, self._classifier = layers.to(place.device), classifier.detach().cpu()
        self._resize, self._device = RESIZE[resizing], place.device

    @torch.no_grad()
    def describe(self, images: Images) -> Floats:
        """Features (N, F) of images (N, S, S, 3)."""
        features = np.empty((len(images), NUM_FEATURES), np.float32)
        for some in batches(len(images), "Inception's features"):
            levels = torch.from_numpy(images[some].transpose(0, 3, 1, 2).astype(np.float32)).to(self._device)
            seen = self._layers((self._resize(levels) - 128) / 128)
            features[some] = seen.reshape(-1, NUM_FEATURES).cpu().numpy()
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, F), without the classifier's bias, as the Inception score is defined."""
        return features @ self._classifier.T


@dataclass(frozen=True)
class MetricNetworks:
    """The networks that are measured with."""

    vgg: MetricNetwork[Features]
    lpips: MetricNetwork[nn.Module]
    inception: MetricNetwork[Inception]
    recogniser: MetricNetwork[Recogniser]

    @classmethod
    def of(cls, options: Options, own_vgg: Path | None, place: Placement) -> "MetricNetworks":
        """Finds them, in the files that the options name or that the run was trained with (`own_vgg`, VGG19 weights).

        Raises:
            ConfigError: a file of weights is missing or does not fit.
        """

        def find(
            name: str, load: Callable[[], tuple[NetworkT, str, Path]], what: str = "", flag: str = ""
        ) -> MetricNetwork[NetworkT]:
            try:
                if name in options.skip:
                    raise SkippedError(f"left out by --skip {name}")
                network, description, path = load()
            except pretrained.UnavailableError as error:
                reason = f"needs trained {what} weights: {error.reason}; or give a file of them with {flag}"
                return MetricNetwork(None, reason)
            except SkippedError as reason:
                return MetricNetwork(None, str(reason))
            return MetricNetwork(network, description, sha256_of(path))

        def vgg() -> tuple[Features, str, Path]:
            if options.vgg_weights is not None or own_vgg is None or not own_vgg.is_file():
                return vgg19(options.vgg_weights, place)
            try:
                return vgg19(own_vgg, place)
            except ConfigError as error:
                raise SkippedError(f"the file that the run was trained with will not do ({error})") from error

        fid = partial(inception, options.inception_weights, options.resizing, place)
        return cls(
            find("vgg", vgg, "VGG19", "--vgg-weights (torchvision's layout, up to relu3_1 will do)"),
            find("lpips", partial(lpips, options.lpips_weights), "AlexNet", "--lpips-weights (AlexNet or VGG16)"),
            find("fid", fid, "Inception", "--inception-weights (torch-fidelity's or clean-fid's layout)"),
            find("identity", partial(identity.recogniser, options.identity_weights)),
        )


# The loaders give a network, a description of it and the file of its weights. They raise UnavailableError where no
# weights can be had, and ConfigError where a file of weights is missing or does not fit.


def vgg19(weights: Path | None, place: Placement) -> tuple[Features, str, Path]:
    """VGG19 up to relu3_1, from a file in torchvision's layout or with torchvision's ImageNet weights."""
    if weights == RANDOM:
        raise ConfigError("--vgg-weights random: measures nothing that could be compared; give a file, or --skip vgg")
    backbone = load_backbone(VGG_TAPS, weights, seed=0)
    description = f"{backbone.source}, at {', '.join(VGG_TAPS)}"
    return Features(backbone, place), description, weights or pretrained.cached(IMAGENET_URL)


def lpips(weights: Path | None) -> tuple[nn.Module, str, Path]:
    """LPIPS (Zhang et al., arXiv 1801.03924): its linear heads come with torchmetrics, its backbone is found here.

    The backbone is AlexNet or VGG16 from a file in torchvision's layout, by default torchvision's AlexNet.
    """
    if weights is not None:
        state, source = pretrained.read(weights, "--lpips-weights"), f"the file {weights.name}"
    else:
        state = pretrained.fetch(ALEXNET_URL)
        source = "torchvision, ImageNet (IMAGENET1K_V1)"
    first = state.get("features.0.weight")
    shape = tuple(first.shape) if isinstance(first, Tensor) else ()
    if shape not in BACKBONES:
        raise ConfigError(f"--lpips-weights {weights}: holds neither AlexNet nor VGG16 in torchvision's layout")
    net, name = BACKBONES[shape]
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # noqa: PLC0415  (start-up: seconds)

    network = _NoTrainLpips(net=net, pnet_rand=True)  # the public class would download the backbone
    names = {key: f"features.{key.split('.', 1)[1]}" for key in network.net.state_dict()}  # slice1.0.weight
    try:
        network.net.load_state_dict({key: state[feature] for key, feature in names.items()})
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"--lpips-weights {weights}: does not fit {name}: {shorten(str(error), 200)}") from error
    return network, f"LPIPS v0.1, {name} weights from {source}", weights or pretrained.cached(ALEXNET_URL)


def inception(weights: Path | None, resizing: Resizing, place: Placement) -> tuple[Inception, str, Path]:
    """TensorFlow's Inception, from a file in either layout, by default torch-fidelity's.

    torch-fidelity: `weights-inception-2015-12-05-6726825d.pth`, a state_dict; pytorch-fid publishes the same file.
    clean-fid: `inception-2015-12-05.pt`, NVIDIA's TorchScript, whose `layers` give the features and whose `output` is
    the classifier.
    """
    if weights is None:
        pretrained.fetch(URL_INCEPTION_V3)
    path = weights or pretrained.cached(URL_INCEPTION_V3)
    if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
        parts, layout = _of_torchscript(path), "clean-fid"
    else:
        parts, layout = _of_state_dict(path), "torch-fidelity"
    description = f"Inception v3 of TensorFlow, {NUM_FEATURES} pooled features, {layout}'s weights {path.name}, "
    return Inception(*parts, resizing, place), description + f"{resizing} resizing", path


def _of_state_dict(path: Path) -> tuple[nn.Module, Tensor]:
    pretrained.read(path, "--inception-weights")  # refuses anything but tensors, which torch-fidelity would not
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except RuntimeError as error:
        said = f"does not fit torch-fidelity's Inception: {shorten(str(error), 200)}"
        raise ConfigError(f"--inception-weights {path}: {said}") from error
    *layers, classifier = network.children()  # its own way in takes whole levels only
    return nn.Sequential(*layers), classifier.weight


def _of_torchscript(path: Path) -> tuple[nn.Module, Tensor]:
    try:
        with warnings.catch_warnings():
            # The file is TorchScript, which PyTorch has deprecated: whoever has the file can do nothing about it.
            warnings.filterwarnings("ignore", message="`torch.jit.load`")
            network = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        return network.layers, network.output.weight
    except (RuntimeError, AttributeError) as error:
        said = f"is no TorchScript of clean-fid's Inception: {shorten(str(error), 200)}"
        raise ConfigError(f"--inception-weights {path}: {said}") from error
