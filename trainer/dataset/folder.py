"""A plain folder of images: no lists, no attributes, splits decided by the names."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.dataset.index import SPLITS, Index
from trainer.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files that count as images, in capitals too; everything else in the folder is left alone."""
MIN_IMAGES = 20
HELD_OUT = 0.05
"""Share of the images in each of val and test."""


def read(directory: Path) -> Index:
    """Finds the images in a folder and its folders, in the order of their relative paths.

    Hidden files and folders are passed over, and links to folders are not followed.

    Raises:
        DataError: the folder cannot be read, or holds too few images.
    """
    files = sorted(_image_files(directory))
    if not files:
        raise DataError(
            f"{directory} holds no images; give a folder of images ({' '.join(SUFFIXES)}) or one in CelebA's layout, "
            "or draw faces with `python -m trainer faces DIR`"
        )
    if len(files) < MIN_IMAGES:
        raise DataError(
            f"{directory} holds {len(files)} image(s); add more, at least {MIN_IMAGES}, so that there are some to "
            "train on and some to judge on"
        )
    labels = np.zeros((len(files), 0), np.bool_)
    return Index(directory, directory, tuple(files), (), labels, split_by_name(files))


def _image_files(directory: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); make it readable") from error

    root = os.fspath(directory)
    files: list[str] = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = "" if folder == root else f"{os.path.relpath(folder, root)}/"
        files += [prefix + name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return files


def split_by_name(files: list[str]) -> NDArray[np.int8]:
    """Splits of N images, (N,) int8: about 90 % train, 5 % val, 5 % test, whatever the machine or the order.

    The images are ranked by a hash of their names; the lowest are val, the highest test. So when images are added,
    all but a few of the others stay in their splits.
    """
    digests = (hashlib.sha256(os.fsencode(name)).digest() for name in files)
    hashes = np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64)
    ranks = np.empty(len(files), np.int64)
    ranks[np.argsort(hashes, kind="stable")] = np.arange(len(files))
    held_out = max(1, round(HELD_OUT * len(files)))
    splits = np.full(len(files), SPLITS.index("train"), np.int8)
    splits[ranks < held_out] = SPLITS.index("val")
    splits[ranks >= len(files) - held_out] = SPLITS.index("test")
    return splits
