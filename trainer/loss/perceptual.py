"""The perceptual term: distances between VGG19 activations of two images (paper, section 3.2; seed)."""

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.loss.vgg import Backbone, FeatureExtractor

CHUNK_IMAGES = 16
"""Images that pass through VGG19 at once on a CPU: more at once fall out of its caches."""


class PerceptualLoss:
    """Mean squared distance of VGG19 activations, one term a tap: MSE(phi_l(x), phi_l(y)) over batch, C, H and W.

    Not a module, on purpose. The features serve one gradient only, so it is computed along with the value, a few
    images at a time, and no graph is kept: memory does not grow with the batch.

    Scale: with `normalise`, each tap's activations are divided by their mean over calibration images, as Gatys et al.
    do, so that one set of loss weights fits any VGG19 weights (trained, activation-normalised or random).

    Attributes:
        backbone: the layers and where their weights came from.
        scales: what each tap's activations are multiplied by.
        chunk_images: images that pass through VGG at once.
    """

    def __init__(self, backbone: Backbone, device: torch.device, dtype: torch.dtype) -> None:
        self.backbone = backbone
        self.scales = dict.fromkeys(backbone.taps, 1.0)
        self.chunk_images = CHUNK_IMAGES if device.type == "cpu" else 1 << 30
        self._extractor = FeatureExtractor(backbone.layers, tuple(backbone.taps.values()), device, dtype)
        self._compare_whole = self._extractor.compare

    def compile(self, images: int) -> None:
        """Has chunks as they occur in batches of `images` images run through torch.compile; others stay eager."""
        self.chunk_images = min(self.chunk_images, images)
        self._compare_whole = torch.compile(self._extractor.compare, dynamic=False)

    def normalise(self, images: Tensor) -> None:
        """Divides each tap's activations by their mean over `images` (N, 3, S, S) in [0, 1]."""
        means = torch.stack([feature.float().mean() for feature in self._extractor.features(images)])
        if not bool((means > 0).all()):
            raise ConfigError("VGG19 gives activations of zero on these images: the weights are broken")
        self.scales = {tap: 1.0 / float(mean) for tap, mean in zip(self.scales, means, strict=True)}

    def __call__(self, reconstructions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compares reconstructions, to which gradients flow, with targets, (B, 3, S, S) float in [0, 1] each.

        Returns:
            The sum of the terms, () float32, and the terms one by one, (taps,) float32 in order of depth and without
            gradients.
        """
        terms, gradient = self.terms_and_gradient(reconstructions.detach(), targets)
        nothing = reconstructions - reconstructions.detach()  # but for autograd, to which the gradient is told here
        return terms.sum() + (nothing * gradient).sum(), terms

    def terms_and_gradient(self, reconstructions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The terms, (taps,) float32, and the gradient of their sum with regard to the reconstructions, float32."""
        terms, gradients = [], []
        weights = [scale**2 for scale in self.scales.values()]
        chunks = (torch.split(images, self.chunk_images) for images in (reconstructions, targets))
        for ours, theirs in zip(*chunks, strict=True):
            compare = self._compare_whole if len(ours) == self.chunk_images else self._extractor.compare
            part, gradient = compare(ours, theirs, weights)
            fraction = len(theirs) / len(targets)
            terms.append(part * fraction)
            gradients.append(gradient * fraction)
        return torch.stack(terms).sum(0), torch.cat(gradients)
