"""A plain folder of images: no lists, no attributes, splits drawn from the names."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainer.data.index import Index, SplitBy, draw
from trainer.errors import DataError

logger = logging.getLogger(__name__)

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files that count as images, in capitals too; everything else in the folder is left alone."""
MASKS = "CelebAMask-HQ-mask-anno"
"""CelebAMask-HQ's folder of masks, which look like images and are no faces."""


def read(directory: Path, files: Sequence[str], split_by: SplitBy, skip_damaged: int) -> Index:
    """The data set that some images in a folder and its folders are: `files` are paths relative to it, as of `find`.

    Raises:
        DataError: there are too few images, or they are no faces.
    """
    for inside in (directory.resolve(), *directory.resolve().parents):
        if inside.name == MASKS:
            raise DataError(f"{directory} holds the masks of CelebAMask-HQ, not faces; give {inside.parent}")
    if not files:
        raise DataError(
            f"{directory} holds no images; give a folder of images ({' '.join(SUFFIXES)}) or one in CelebA's layout, "
            "or draw faces with `python -m trainer faces DIR`"
        )
    labels, splits = np.zeros((len(files), 0), np.bool_), draw(directory, files, split_by)
    return Index(directory, directory, tuple(files), (), labels, splits, skip_damaged=skip_damaged)


def find(directory: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The files of some kinds in a folder and its folders, as paths relative to it.

    Hidden files and folders are passed over. Links to folders are not followed, which a warning says.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); make it readable") from error

    root = os.fspath(directory)
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != MASKS]
        for name in filter(os.path.islink, (os.path.join(folder, name) for name in folders)):
            logger.warning("%s is a link to a folder, which is not followed; copy the folder there, or move it", name)
        prefix = "" if folder == root else f"{os.path.relpath(folder, root)}/"
        yield from (prefix + name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))
