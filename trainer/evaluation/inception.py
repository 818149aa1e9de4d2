"""TensorFlow's Inception of 2015, which FID and the Inception score look through, from a file in either layout.

torch-fidelity   `weights-inception-2015-12-05-6726825d.pth`, a state_dict; pytorch-fid publishes the same file.
clean-fid        `inception-2015-12-05.pt`, NVIDIA's TorchScript, whose `layers` give the features and whose `output` is
                 the classifier.

Shapes: N images, S image side, F = 2048 features, C = 1008 classes.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from trainer.artifacts.encode import batches
from trainer.errors import ConfigError
from trainer.evaluation.encoded_run import Floats, Images
from trainer.evaluation.options import Resizing
from trainer.hardware.device import Placement
from trainer.loss import pretrained

URL = URL_INCEPTION_V3
FLAG = "--inception-weights"
SIDE, NUM_FEATURES = 299, 2048
RESIZE: dict[Resizing, Callable[[Tensor], Tensor]] = {
    "clean": lambda levels: F.interpolate(levels, SIDE, mode="bicubic", antialias=True).clamp(0, 255),
    "tensorflow": lambda levels: interpolate_bilinear_2d_like_tensorflow1x(levels, (SIDE, SIDE), align_corners=False),
}
"""Levels (N, 3, S, S), 0 to 255, to (N, 3, SIDE, SIDE)."""


class Inception:
    """The network, frozen, in FP32.

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


def inception(weights: Path | None, resizing: Resizing, place: Placement) -> tuple[Inception, str, Path]:
    """The network of a file, by default torch-fidelity's of the hub cache, a description, and the file.

    Raises:
        UnavailableError: there is no file, and no download.
        ConfigError: the file is missing, or holds something else.
    """
    if weights is None:
        pretrained.fetch(URL)
    path = weights or pretrained.cached(URL)
    if path.is_file() and _is_torchscript(path):
        parts, layout = _of_torchscript(path), "clean-fid"
    else:
        parts, layout = _of_state_dict(path), "torch-fidelity"
    description = f"Inception v3 of TensorFlow, {NUM_FEATURES} pooled features, {layout}'s weights {path.name}, "
    return Inception(*parts, resizing, place), description + f"{resizing} resizing", path


def _of_state_dict(path: Path) -> tuple[nn.Module, Tensor]:
    pretrained.read(path, FLAG)  # refuses anything but tensors, which torch-fidelity would not
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except RuntimeError as error:
        raise ConfigError(f"{FLAG} {path}: does not fit torch-fidelity's Inception: {error}") from error
    *layers, classifier = network.children()  # its own way in takes whole levels only
    return nn.Sequential(*layers), classifier.weight


def _is_torchscript(path: Path) -> bool:
    return zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist())


def _of_torchscript(path: Path) -> tuple[nn.Module, Tensor]:
    try:
        with warnings.catch_warnings():
            # The file is TorchScript, which PyTorch has deprecated: whoever has the file can do nothing about it.
            warnings.filterwarnings("ignore", message="`torch.jit.load`")
            network = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        return network.layers, network.output.weight
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"{FLAG} {path}: is no TorchScript of clean-fid's Inception: {error}") from error
