"""What a data set holds, before any image is opened: its images, labels and splits.

The splits of a data set that comes without are drawn by a hash, so that they depend on the names alone.
"""

import dataclasses
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
LEFT_OUT = -1
"""In `Index.splits`: an image that is in no split, as it is damaged or more than was asked for."""

SplitBy = Literal["name", "folder"]
MIN_IMAGES = 20
HELD_OUT = 0.05
"""Share of the images in each of val and test, where a data set comes without splits."""

REPORTED = 10
"""Images that a message names; the others go to a file."""


def shortened(items: Sequence[str], rest: str = "") -> list[str]:
    """The first of some items and how many more there are, for a message; `rest` says where those are."""
    more = len(items) - REPORTED
    return [*items[:REPORTED], f"... and {more} more{rest}"] if more > 0 else list(items)


class ImageFile(Protocol):
    """An encoded image: a file, or something inside one. Its `str` names it in messages."""

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """The encoded bytes, as a file."""


@dataclass(frozen=True)
class Index:
    """The names, labels and splits of N images."""

    root: Path  # the folder that holds the data set: the one that the user named, or the one next to it with the lists
    folder: Path  # the folder that the names are relative to
    files: tuple[str, ...]  # the N image names
    attributes: tuple[str, ...]  # the A attribute names; none for images without labels
    labels: NDArray[np.bool_]  # (N, A), True where the image has the attribute
    splits: NDArray[np.int8]  # (N,), 0 train, 1 val, 2 test, -1 left out
    layout: str = "plain folder of images"  # how the folder was understood, for people
    removal: str = "delete it"  # how to take an image out of the data set, for people
    skip_damaged: int = 0  # how many absent or damaged images may be left out
    left_out: tuple[str, ...] = ()  # one sentence for each image that was left out

    def image(self, row: int) -> ImageFile:
        """An image, to be opened."""
        return self.path(row)

    def path(self, row: int) -> Path:
        """The file that an image is, or lies in."""
        return self.folder / self.files[row]

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of the images in a split: "train", "val" or "test"."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def require_splits(self) -> None:
        """Refuses an index with an empty split.

        Raises:
            DataError: names the split.
        """
        for split in SPLITS:
            if not len(self.rows(split)):
                raise DataError(f"{self.root}: no image is left in the {split} split; add some, or mend those left out")

    def leaving_out(self, sentences: Sequence[str]) -> "Index":
        """The index with more images recorded as left out, a sentence each; the log names the first of them."""
        shown = shortened(sentences, ", which config.json of a run lists")
        logger.warning("%s: %d image(s) are left out: %s", self.root, len(sentences), "; ".join(shown))
        return dataclasses.replace(self, left_out=(*self.left_out, *sentences))

    def limited(self, count: int) -> "Index":
        """The same images with `count` of the train split's, 0 for all; the others are in no split.

        They are drawn at random, but always the same ones: a smaller count takes some of those of a larger one.

        Raises:
            ConfigError: the train split has fewer.
        """
        train = self.rows("train")
        if count > len(train):
            raise ConfigError(
                f"--limit-train {count}: {self.root} has {len(train)} training images; give that many at most, or 0 "
                "for all of them"
            )
        if not count:
            return self
        splits = self.splits.copy()
        splits[np.random.default_rng(0).permutation(train)[count:]] = LEFT_OUT
        return dataclasses.replace(self, splits=splits)


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
