"""Splits of a data set that comes without: drawn by a hash, so that they depend on the names alone."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.data.index import SPLITS
from trainer.errors import DataError

SplitBy = Literal["name", "folder"]

MIN_IMAGES = 20
HELD_OUT = 0.05
"""Share of the images in each of val and test."""


def draw(root: Path, files: Sequence[str], split_by: SplitBy) -> NDArray[np.int8]:
    """Draws the splits of the N images of a data set, (N,) int8, by their names with `/` between folders.

    Raises:
        DataError: there are too few images or folders.
    """
    if len(files) < MIN_IMAGES:
        raise DataError(f"{root} holds {len(files)} image(s); add more, at least {MIN_IMAGES}, to train and judge on")
    return split_by_name(files) if split_by == "name" else split_by_folder(root, files)


def split_by_folder(root: Path, files: Sequence[str]) -> NDArray[np.int8]:
    """As `split_by_name`, but all images of one folder, and of the folders in it, come into one split.

    The folders are those of the first level at which there are several, such as a folder a person.

    Raises:
        DataError: there are fewer than three of them.
    """
    depth = len(Path(os.path.commonpath([os.path.dirname(name) for name in files])).parts)
    parts = [name.split("/", depth + 1) for name in files]
    folders = {path[depth] for path in parts if len(path) > depth + 1}
    if len(folders) < 3:
        raise DataError(
            f"--split-by folder: {root} has {len(folders)} folder(s) to split by, and each split needs one; give a "
            "folder with a folder a person, or leave it out"
        )
    return split_by_name([path[depth] for path in parts])


def split_by_name(names: Sequence[str]) -> NDArray[np.int8]:
    """Splits of N images, (N,) int8: about 90 % train, 5 % val, 5 % test, whatever the machine or the order.

    The names are ranked by a hash; the lowest are val, the highest test. So when images are added, all but a few of the
    others stay in their splits. Images of one name stay together.
    """
    sizes = Counter(names)
    ranked = sorted(sizes, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    wanted = max(1, round(HELD_OUT * len(names)))
    most = (len(ranked) - 1) // 2  # so that some are left to train on, however many images have one name
    split_of = dict.fromkeys(ranked, SPLITS.index("train"))
    for split, order in (("val", ranked), ("test", ranked[::-1])):
        held = 0
        for name in order[:most]:
            if held >= wanted:
                break
            split_of[name] = SPLITS.index(split)
            held += sizes[name]
    return np.array([split_of[name] for name in names], np.int8)
