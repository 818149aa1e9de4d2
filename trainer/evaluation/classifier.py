"""A small image classifier that judges edits. It is trained on the train split's images, never on latents.

Shapes: B batch, N images, A attributes, S image side.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from trainer.artifacts.encode import batches
from trainer.data import FaceData
from trainer.hardware.device import Placement, seeded
from trainer.run_folder import write_atomically

CLASSIFIER = "classifier.safetensors"
VERSION = "2"
DESCRIBED = ("attributes", "accuracy", "majority")  # what a file has besides the weights, as JSON
NUM_IMAGES = 54_000  # images that it sees in training, if that makes 2 to 20 epochs
BATCH_SIZE, MIN_BATCH_SIZE, BATCHES_AN_EPOCH = 128, 8, 8
"""Images a step; fewer on small data, so that an epoch has steps enough to be learnt from."""
PEAK_LR, WEIGHT_DECAY = 4e-3, 1e-2
MIN_BLUR_SCALE = 0.3
"""Smallest size that images are brought down to and up again from in augmentation, as a share of theirs."""


class Network(nn.Sequential):
    """Four convolutions of stride two and a linear layer: (B, 3, S, S) in [0, 1] to (B, A) logits."""

    def __init__(self, num_attributes: int, widths: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        layers: list[nn.Module] = []
        for in_channels, out_channels in zip((3, *widths), widths, strict=False):
            layers.append(nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(out_channels), nn.ReLU()]
        last = nn.Linear(16 * widths[-1], num_attributes)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), last)


@dataclass(frozen=True)
class Classifier:
    """A trained network."""

    network: Network  # in evaluation mode
    attributes: tuple[str, ...]  # the A names, in the order of its outputs
    accuracy: dict[str, float]  # share of right predictions on the test split, by attribute
    majority: dict[str, float]  # what always predicting the test split's more frequent side would reach, by attribute
    place: Placement  # where it computes

    @torch.no_grad()
    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of images (N, S, S, 3), averaged over each and its mirror image: (N, A), above 0 where it sees it."""
        logits = np.empty((len(images), len(self.attributes)), np.float32)
        for some in batches(len(images), "judging images", BATCH_SIZE):
            batch = self.place.images(images[some])
            with self.place.autocast():
                both = self.network(batch) + self.network(batch.flip(-1))
            logits[some] = (both.float() / 2).cpu().numpy()
        return logits

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which attributes it sees on images (N, S, S, 3) uint8: (N, A)."""
        return self.logits(images) > 0

    def trust(self, reconstructions: NDArray[np.uint8], labels: NDArray[np.bool_]) -> dict[str, Any]:
        """How far it can be trusted: its accuracy on the test split's images, and on their reconstructions.

        A judge that is blind on reconstructions, smoother than photographs, would make everything that it says of edits
        void. It cannot see there what the latents do not hold: `attribute_prediction` says what they do.

        Returns:
            `accuracy_mean`, `majority_mean`, and by attribute `accuracy` and `majority`; `reconstructions`:
            `accuracy_mean`, and by attribute `accuracy`; `unsure`: attributes in which it is no better there than
            always predicting the majority, so that flips of them say little.
        """
        right = (self.predict(reconstructions) == labels).mean(0).tolist()
        accuracy = dict(zip(self.attributes, right, strict=True))
        return {
            "accuracy_mean": float(np.mean(list(self.accuracy.values()))),
            "majority_mean": float(np.mean(list(self.majority.values()))),
            "accuracy": self.accuracy,
            "majority": self.majority,
            "reconstructions": {"accuracy_mean": float(np.mean(right)), "accuracy": accuracy},
            "unsure": [name for name, share in accuracy.items() if share <= self.majority[name]],
        }

    def save(self, path: Path, fingerprint: str) -> None:
        """Writes the weights, with everything else in the file's metadata."""
        described = {name: json.dumps(getattr(self, name)) for name in DESCRIBED}
        metadata = {"version": VERSION, "fingerprint": fingerprint, **described}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        write_atomically(path, lambda file: save_file(tensors, file, metadata))

    @classmethod
    def load(cls, path: Path, fingerprint: str, place: Placement) -> "Classifier | None":
        """The classifier of a file, or None when there is none or it was trained on other data."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                if (metadata["version"], metadata["fingerprint"]) != (VERSION, fingerprint):
                    return None
                attributes, accuracy, majority = (json.loads(metadata[name]) for name in DESCRIBED)
                network = Network(len(attributes))
                network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, RuntimeError):  # RuntimeError: of another architecture
            return None
        return cls(place.module(network).eval(), tuple(attributes), accuracy, majority, place)


def classifier_of(folder: Path, data: FaceData, place: Placement) -> Classifier:
    """The judge for a data set: read from `folder` if it holds one for these very data, else trained and kept there."""
    path = folder / CLASSIFIER
    classifier = Classifier.load(path, data.fingerprint, place)
    if classifier is None:
        epochs = round(NUM_IMAGES / len(data.rows("train")))
        classifier = train_classifier(data, place, min(max(epochs, 2), 20))
        classifier.save(path, data.fingerprint)
    return classifier


def train_classifier(data: FaceData, place: Placement, epochs: int, seed: int = 0) -> Classifier:
    """Trains on the train split and measures the accuracy on the test split."""
    labels, rows, random = data.index.labels, data.rows("train"), np.random.default_rng(seed)
    with seeded(seed):
        network = place.module(Network(labels.shape[1]))
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        batch_size = min(BATCH_SIZE, max(MIN_BATCH_SIZE, len(rows) // BATCHES_AN_EPOCH), len(rows))
        steps = epochs * (len(rows) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
        order = np.concatenate([random.permutation(rows) for _ in range(epochs)])
        for step in tqdm(range(steps), "training the classifier", unit="step", disable=None):
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
    classifier = Classifier(network.eval(), data.index.attributes, {}, {}, place)
    test = data.rows("test")
    right = (classifier.predict(data.images[test]) == labels[test]).mean(0).tolist()
    share = labels[test].mean(0)
    accuracy = dict(zip(classifier.attributes, right, strict=True))
    majority = dict(zip(classifier.attributes, np.maximum(share, 1 - share).tolist(), strict=True))
    return replace(classifier, accuracy=accuracy, majority=majority)


def _augment(images: Tensor, random: np.random.Generator) -> Tensor:
    """Mirrors each image with probability one half, and blurs the first half of a batch.

    Reconstructions, smoother than photographs, are to be judged too.
    """
    mirrored = torch.from_numpy(random.random(len(images)) < 0.5).to(images.device)
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    size, half = images.shape[-1], len(images) // 2
    if not half:
        return images
    small_size = max(8, round(size * random.uniform(MIN_BLUR_SCALE, 1.0)))
    small = F.interpolate(images[:half], size=small_size, mode="bilinear", antialias=True)
    return torch.cat([F.interpolate(small, size=size, mode="bilinear"), images[half:]])
