"""A small image classifier that judges edits. It is trained on the train split's images, never on latents.

Shapes: B batch, A attributes, S image side.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from trainer.checkpoint import write_atomically
from trainer.dataset import FaceData
from trainer.placement import Placement

logger = logging.getLogger(__name__)

VERSION = "1"


class Network(nn.Sequential):
    """Four convolutions of stride two and a linear layer: (B, 3, S, S) in [0, 1] to (B, A) logits."""

    def __init__(self, num_attributes: int, widths: tuple[int, ...] = (24, 48, 96, 128)) -> None:
        layers: list[nn.Module] = []
        for in_channels, out_channels in zip((3, *widths), widths, strict=False):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
        super().__init__(
            *layers,
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(16 * widths[-1], num_attributes),
        )


@dataclass(frozen=True)
class Classifier:
    """A trained network.

    Attributes:
        network: in evaluation mode.
        attributes: the A names, in the order of its outputs.
        accuracy: share of right predictions on the test split, by attribute.
        majority: what always predicting the test split's more frequent side would reach, by attribute.
        place: where it computes.
    """

    network: Network
    attributes: tuple[str, ...]
    accuracy: dict[str, float]
    majority: dict[str, float]
    place: Placement

    @torch.no_grad()
    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which attributes it sees.

        Args:
            images: (N, S, S, 3) uint8.

        Returns:
            (N, A) bool.
        """
        parts = [
            self.network(self.place.images(images[start : start + 256])) > 0 for start in range(0, len(images), 256)
        ]
        return torch.cat(parts).cpu().numpy()

    def save(self, path: Path, fingerprint: str) -> None:
        """Writes the weights, with everything else in the file's metadata."""
        metadata = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "attributes": json.dumps(self.attributes),
            "accuracy": json.dumps(self.accuracy),
            "majority": json.dumps(self.majority),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        write_atomically(path, lambda file: save_file(tensors, file, metadata))

    @classmethod
    def load(cls, path: Path, fingerprint: str, place: Placement) -> Classifier | None:
        """The classifier of a file, or None when there is none or it was trained on other data."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                if (metadata["version"], metadata["fingerprint"]) != (VERSION, fingerprint):
                    return None
                attributes = tuple(json.loads(metadata["attributes"]))
                network = Network(len(attributes))
                network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError):
            return None
        accuracy, majority = json.loads(metadata["accuracy"]), json.loads(metadata["majority"])
        return cls(place.module(network).eval(), attributes, accuracy, majority, place)


def train_classifier(data: FaceData, place: Placement, epochs: int, seed: int = 0) -> Classifier:
    """Trains on the train split and measures the accuracy on the test split.

    Args:
        data: packed images and their labels.
        place: device and arithmetic.
        epochs: passes over the train split.
        seed: of the weights, the order and the augmentation.
    """
    torch.manual_seed(seed)
    labels, rows = data.index.labels, data.rows("train")
    network = place.module(Network(labels.shape[1]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    batch_size, random = 128, np.random.default_rng(seed)
    steps = epochs * max(1, len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    order = np.concatenate([random.permutation(rows) for _ in range(epochs)])
    for step in tqdm(range(steps), "training the classifier", unit="step"):
        batch = order[step * batch_size :][:batch_size]
        images = _augment(place.images(data.images[batch]), random)
        wanted = torch.from_numpy(labels[batch]).float().to(place.device)
        with place.autocast():
            logits = network(images)
        loss = F.binary_cross_entropy_with_logits(logits.float(), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    network.eval()
    return _measured(Classifier(network, data.index.attributes, {}, {}, place), data)


def _augment(images: Tensor, random: np.random.Generator) -> Tensor:
    """Mirrors and blurs at random, per batch: reconstructions, smoother than photographs, are to be judged too."""
    if random.random() < 0.5:
        images = images.flip(-1)
    if random.random() < 0.5:
        size = images.shape[-1]
        scale = random.uniform(0.4, 1.0)
        small = F.interpolate(images, size=max(8, round(size * scale)), mode="bilinear", antialias=True)
        images = F.interpolate(small, size=size, mode="bilinear")
    return images


def _measured(classifier: Classifier, data: FaceData) -> Classifier:
    rows = data.rows("test")
    truth = data.index.labels[rows]
    right = (classifier.predict(data.images[rows]) == truth).mean(0)
    share = truth.mean(0)
    names = classifier.attributes
    return Classifier(
        classifier.network,
        names,
        dict(zip(names, map(float, right), strict=True)),
        dict(zip(names, map(float, np.maximum(share, 1 - share)), strict=True)),
        classifier.place,
    )
