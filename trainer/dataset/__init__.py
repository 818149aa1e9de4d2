"""Images and their labels: found on disk, checked, decoded once, and memory-mapped ever after.

A data set is a folder in CelebA's layout (`celeba`) or any folder of images (`folder`).
"""

from __future__ import annotations

from pathlib import Path

from trainer.dataset import celeba, folder
from trainer.dataset.celeba import ATTRIBUTES, IMAGES, PARTITION
from trainer.dataset.index import SPLITS, Index
from trainer.dataset.packing import FaceData, Pack
from trainer.errors import DataError

__all__ = ["ATTRIBUTES", "IMAGES", "PARTITION", "SPLITS", "FaceData", "Index", "Pack", "load", "read_index"]


def load(directory: Path, image_size: int, crop: int) -> FaceData:
    """Reads a data set, packing its images if no packed array fits.

    The images are prepared as in the seed document, CenterCrop(crop) and Resize(image_size), bilinear; its random
    flip and its scaling to [0, 1] happen per batch, on the device.

    Args:
        directory: see `read_index`.
        image_size: side S of the packed images, pixels.
        crop: side of the centre crop, pixels; 0 takes the whole image (and the centre of one that is not square).

    Raises:
        DataError: a list or an image is missing, truncated, malformed or undecodable.
    """
    return Pack.of(read_index(directory), image_size, crop).data()


def read_index(directory: Path) -> Index:
    """Finds the images of a data set and reads its lists; opens no image.

    Args:
        directory: a folder in CelebA's layout, one that holds such a folder named `celeba`, or a folder of images,
            in folders of any depth.

    Raises:
        DataError: something is missing, truncated or malformed; names the file and the line.
    """
    if not directory.exists():
        raise DataError(
            f"{directory} does not exist; give a folder of images or one in CelebA's layout, or draw one with "
            f"`python -m trainer faces {directory}`"
        )
    if not directory.is_dir():
        raise DataError(f"{directory} is a file; give the folder that holds the images")
    root = celeba.find_root(directory)
    return folder.read(directory) if root is None else celeba.read(root)
