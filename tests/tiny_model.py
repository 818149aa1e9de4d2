"""A model with known arithmetic, so that every client can check that it got its own images back.

The latent of an 8 x 8 image is its 192 pixel values and nothing else: mu = pixels, log_var = -pixels / 2, and
the decoder rounds and clips back to bytes. Encode then decode is the identity; edits add to pixel values.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from engine.backends import Backend
from engine.latents import Directions

IMAGE_SIZE = 8
LATENT_DIM = IMAGE_SIZE * IMAGE_SIZE * 3
MAX_BATCH_SIZE = 32
ATTRIBUTES = ("Smiling", "Eyeglasses", "Male")


def random_images(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Images [count, 8, 8, 3] that no other seed gives."""
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def latents_of(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What the tiny encoder's mu must be."""
    return images.reshape(len(images), LATENT_DIM).astype(np.float32)


def images_of(latents: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """What the tiny decoder must give."""
    pixels = np.rint(np.clip(latents, 0, 255)).astype(np.uint8)
    return pixels.reshape(len(latents), IMAGE_SIZE, IMAGE_SIZE, 3)


class TinyModel(Backend):
    """The arithmetic as a backend."""

    def encode(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        mu = images.reshape(len(images), -1).astype(np.float32)
        return mu, mu * np.float32(-0.5)

    def decode(self, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        size = round((latents.shape[1] / 3) ** 0.5)
        return np.rint(np.clip(latents, 0, 255)).astype(np.uint8).reshape(len(latents), size, size, 3)


def tiny_directions(image_size: int = IMAGE_SIZE) -> Directions:
    """Smiling adds 10 to the red values; Eyeglasses adds 20 to the first half; Male overlaps with both."""
    vectors = np.zeros((len(ATTRIBUTES), image_size * image_size, 3), np.float32)
    vectors[0, :, 0] = 10
    vectors[1, : image_size * image_size // 2] = 20
    vectors[2, ::2] = 5
    flat, kinds = vectors.reshape(len(ATTRIBUTES), -1), ("mean", "adjusted", "svm")
    sides = ((12.0, 13.0), (6.0, 7.0), (25.0, 26.0))
    return Directions(ATTRIBUTES, flat, (100, 60, 50), (90, 130, 140), "train", kinds, sides=sides)


def save_directions(directions: Directions, path: Path) -> None:
    """Writes them as the trainer does."""
    columns = ("names", "positives", "negatives", "kinds", "sides")
    metadata = {name: json.dumps(getattr(directions, name)) for name in columns}
    metadata |= {"split": directions.split, "model_sha256": directions.model_sha256}
    save_file({"directions": np.ascontiguousarray(directions.vectors)}, path, metadata)
