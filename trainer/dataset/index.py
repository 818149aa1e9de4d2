"""What a data set holds, before any image is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Index:
    """The names, labels and splits of N images.

    Attributes:
        root: the folder that the user named, or the one in it that holds the lists.
        folder: the folder that the names are relative to.
        files: the N image names.
        attributes: the A attribute names; none for a plain folder of images.
        labels: (N, A) bool, True where the image has the attribute.
        splits: (N,) int8, 0 train, 1 val, 2 test.
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
