"""CelebA and its relatives on disk: images in a folder, and lists beside it.

torchvision:     img_align_celeba/, list_attr_celeba.txt, list_eval_partition.txt
Kaggle:          img_align_celeba/img_align_celeba/, list_attr_celeba.csv, list_eval_partition.csv
CelebAMask-HQ:   CelebA-HQ-img/, CelebAMask-HQ-attribute-anno.txt

`labels` describes the list of attributes. The list of splits has a line `000001.jpg 0` an image: 0 train, 1 val, 2
test. It may be missing: then the splits are drawn as those of a plain folder.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.index import SPLITS, Index, SplitBy, draw
from trainer.data.labels import Labels, leave_out_absent, read_labels, read_splits
from trainer.errors import DataError

logger = logging.getLogger(__name__)

IMAGES, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
HQ_IMAGES, HQ_ATTRIBUTES = "CelebA-HQ-img", "CelebAMask-HQ-attribute-anno.txt"
ATTRIBUTE_LISTS = (ATTRIBUTES, "list_attr_celeba.csv", HQ_ATTRIBUTES)
PARTITIONS = (PARTITION, "list_eval_partition.csv")


def find_root(directory: Path) -> Path | None:
    """The folder with CelebA's lists: `directory`, the only one in it that has any, or the one around its images.

    Raises:
        DataError: several folders in `directory` have lists.
    """
    if _has_lists(directory):
        return directory
    below = sorted(folder for folder in directory.iterdir() if folder.is_dir() and _has_lists(folder))
    if len(below) > 1:
        raise DataError(f"{directory} holds several data sets, {below[0].name} and {below[1].name}; give one of them")
    if below:
        return below[0]
    inside = directory.resolve()
    for root in inside.parents[:2]:
        images = _images_of(root)
        if _has_lists(root) and images is not None and inside in (images, images.parent):
            return root
    if _images_of(directory) is not None:
        logger.warning("%s has no %s (or .csv) beside its images, so they have no attributes", directory, ATTRIBUTES)
    return None


def root_of(directory: Path, files: Sequence[str]) -> Path | None:
    """The folder with CelebA's lists that some images lie below; `files` are their paths relative to `directory`."""
    roots = {name.partition(f"{images}/")[0] for images in (IMAGES, HQ_IMAGES) for name in files if images in name}
    return next((directory / root for root in sorted(roots) if _has_lists(directory / root)), None)


def read(root: Path, split_by: SplitBy, skip_damaged: int) -> Index:
    """Reads and checks the lists, and that every image is there.

    Raises:
        DataError: something is missing, truncated or malformed; names the file and the line.
    """
    if split_by != "name":
        raise DataError(f"--split-by {split_by}: the images of {root} are in one folder, as CelebA's are; leave it out")
    attributes, partition, images = _first(root, ATTRIBUTE_LISTS), _first(root, PARTITIONS), _images_of(root)
    if attributes is None or images is None:
        missing = f"{IMAGES}/" if images is None else ATTRIBUTES
        raise DataError(
            f"{root}/{missing} is missing; CelebA's layout is {IMAGES}/, {ATTRIBUTES} and {PARTITION} in one folder, "
            f"Kaggle's has .csv lists, CelebAMask-HQ has {HQ_IMAGES}/ and {HQ_ATTRIBUTES}; a plain folder of images "
            "has no such lists"
        )
    labels = read_labels(attributes)
    if partition is None:
        splits = draw(root, labels.files, "name")
        counts = root, PARTITION, *np.bincount(splits)
        logger.info("%s has no %s: its images are split by name, %d train, %d val, %d test", *counts)
    else:
        splits = _look_up(partition, labels)
    try:
        present = set(os.listdir(images))
    except OSError as error:
        raise DataError(f"{images} cannot be read ({error.strerror}); make it readable") from error
    kept = np.array([name in present for name in labels.files])
    files = tuple(name for name in labels.files if name in present)
    removal = f"remove its line from {attributes.name}" + labels.counted * " and lower the count in line 1"
    layout = "CelebAMask-HQ's layout" if attributes.name == HQ_ATTRIBUTES else "CelebA's layout"
    values = labels.values[kept]
    index = Index(root, images, files, labels.attributes, values, splits[kept], layout, removal, skip_damaged)
    return leave_out_absent(index, labels, np.flatnonzero(~kept).tolist(), f"restore it, or {removal}")


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def _has_lists(folder: Path) -> bool:
    return _first(folder, ATTRIBUTE_LISTS + PARTITIONS) is not None


def _images_of(root: Path) -> Path | None:
    candidates = (root / IMAGES / IMAGES, root / IMAGES, root / HQ_IMAGES)
    return next((folder for folder in candidates if folder.is_dir()), None)


def _look_up(partition: Path, labels: Labels) -> NDArray[np.int8]:
    """The splits that a list gives the images."""
    number_of = read_splits(partition)
    for name, line in zip(labels.files, labels.lines, strict=True):
        if name not in number_of:
            raise DataError(
                f"{partition}: {name}, line {line} of {labels.path.name}, has no split there; add the line `{name} 0` "
                "for the train split, 1 for val, 2 for test"
            )
    splits = np.array([number_of[name] for name in labels.files], np.int8)
    for number, split in enumerate(SPLITS):
        if not (splits == number).any():
            raise DataError(
                f"{partition}: no image of {labels.path.name} is in the {split} split ({number}); each of train (0), "
                "val (1) and test (2) needs some"
            )
    return splits
