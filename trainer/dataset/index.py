"""What a data set holds, before any image is opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ConfigError

SPLITS = ("train", "val", "test")
LEFT_OUT = -1
"""In `Index.splits`: an image that is in no split."""


@dataclass(frozen=True)
class Index:
    """The names, labels and splits of N images.

    Attributes:
        root: the folder that the user named, or the one in it that holds the lists.
        folder: the folder that the names are relative to.
        files: the N image names.
        attributes: the A attribute names; none for a plain folder of images.
        labels: (N, A) bool, True where the image has the attribute.
        splits: (N,) int8, 0 train, 1 val, 2 test, -1 left out.
        lists: the files beside the images that the labels and splits come from; none for a plain folder.
    """

    root: Path
    folder: Path
    files: tuple[str, ...]
    attributes: tuple[str, ...]
    labels: NDArray[np.bool_]
    splits: NDArray[np.int8]
    lists: tuple[Path, ...] = ()

    @property
    def layout(self) -> str:
        """How the folder was understood."""
        return "CelebA's layout" if self.lists else "plain folder of images"

    @property
    def removal(self) -> str:
        """How to take an image out of the data set."""
        if not self.lists:
            return "delete it"
        return f"remove its line from {self.lists[0].name} and lower the count in line 1"

    def path(self, row: int) -> Path:
        """The file of an image."""
        return self.folder / self.files[row]

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of the images in a split: "train", "val" or "test"."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def limited(self, count: int) -> Index:
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
        return replace(self, splits=splits)
