"""Images and their labels: found on disk, checked, decoded once, and memory-mapped ever after.

A data set is a folder in CelebA's layout (`celeba`), one with parquet files (`parquet`) or any folder of images
(`folder`), whose labels may come from a CSV (`labels`).
"""

import logging
from pathlib import Path
from shlex import quote
from typing import Any

from framing import CELEBA_SOURCE, Frame
from trainer.config import TrainConfig
from trainer.data import celeba, folder, parquet
from trainer.data.index import MIN_IMAGES, SPLITS, Index, SplitBy
from trainer.data.labels import relabel
from trainer.data.packed import FaceData, Pack
from trainer.errors import DataError

__all__ = ["SPLITS", "FaceData", "Index", "Pack", "load_data", "load_data_for", "read_index"]

logger = logging.getLogger(__name__)


def load_data(
    directory: Path,
    image_size: int,
    crop: int,
    source: tuple[int, int] = CELEBA_SOURCE,
    align: bool = False,
    *,
    labels: Path | None = None,
    split_by: SplitBy = "name",
    skip_damaged: int = 0,
) -> FaceData:
    """Reads a data set, packing its images if no packed array fits.

    Images of CelebA's size are prepared as in the seed document, CenterCrop(crop) and Resize(image_size), bilinear;
    others are brought to that frame, see `framing.Frame`. The document's random flip and its scaling to [0, 1] happen
    per batch, on the device.

    Args:
        directory: see `read_index`, as for labels, split_by and skip_damaged.
        image_size: side S of the packed images, pixels.
        crop: side of the square cut out of images of the size `source`, pixels; 0 takes the whole image.
        source: width and height of the aligned images that `crop` is cut out of, pixels.
        align: find the face in each image and align it with the frame first.
        labels: a CSV.
        split_by: name or folder.
        skip_damaged: a number of images.

    Raises:
        ConfigError: faces are to be aligned, and the frame or this environment can't.
        DataError: a list or an image is missing, truncated, malformed or undecodable.
    """
    index = read_index(directory, labels=labels, split_by=split_by, skip_damaged=skip_damaged)
    return Pack.of(index, Frame.of(image_size, crop, source), align).data()


def load_data_for(
    config: TrainConfig, resolved: dict[str, Any], directory: Path, *, labels: Path | None = None, align: bool = False
) -> FaceData:
    """Reads a data set for a run: its own with the labels and splits of its training, another with that one's own.

    A data set is the run's own if it lies where the run read it, or is a copy. `labels` is a CSV to take instead; a run
    that was trained with `align` aligns anyway.

    Raises:
        ConfigError, DataError: as `load_data`.
    """

    def load(labels: Path | None, split_by: SplitBy) -> FaceData:
        frame = (config.model.image_size, config.crop, config.source, align or config.align)
        return load_data(directory, *frame, labels=labels, split_by=split_by, skip_damaged=config.skip_damaged)

    own = labels or config.labels, config.split_by
    if own != (labels, "name"):
        root = (celeba.find_root(directory) or directory) if directory.is_dir() else directory
        in_place = str(root.resolve()) == resolved.get("data")
        try:
            data = load(*own)
        except DataError:
            if in_place:
                raise
        else:
            if in_place or data.fingerprint == resolved.get("data_fingerprint"):
                return data
        logger.info("%s is other data than the run's, so the run's labels and splits are not those of it", directory)
    return load(labels, "name")


def read_index(
    directory: Path, *, labels: Path | None = None, split_by: SplitBy = "name", skip_damaged: int = 0
) -> Index:
    """Finds the images of a data set and reads its lists; opens no image.

    Args:
        directory: a folder in CelebA's layout (see `celeba`), the folder around it or that of its images; or one of
            images or of parquet files, in folders of any depth.
        labels: a CSV with the header `file,Smiling,...` and a row an image, instead of the data set's own labels; its
            names are paths in the data set, or base names where only one image has them.
        split_by: what the splits of images without a list of splits are drawn by. name: each image by itself; folder:
            all images of a folder come into one split.
        skip_damaged: how many images that are listed and absent, or damaged, may be left out.

    Raises:
        DataError: something is missing, truncated or malformed; names the file and the line.
    """
    index = _find(directory, split_by, skip_damaged)
    if labels is not None:
        index = relabel(index, labels)
    index.require_splits()
    return index


def _find(directory: Path, split_by: SplitBy, skip_damaged: int) -> Index:
    if not directory.exists():
        raise DataError(
            f"{directory} does not exist; give a folder of images or one in CelebA's layout, or draw one with "
            f"`python -m trainer faces {quote(str(directory))}`"
        )
    if not directory.is_dir():
        raise DataError(f"{directory} is a file; give the folder that holds the images")
    root = celeba.find_root(directory)
    if root is not None:
        return celeba.read(root, split_by, skip_damaged)
    files = sorted(folder.find(directory, folder.SUFFIXES))
    if (deep := celeba.root_of(directory, files)) is not None:
        raise DataError(f"{directory} holds CelebA's lists further down, in {deep}; give that folder")
    few = len(files) < MIN_IMAGES  # as some previews beside parquet files are
    tables = sorted(folder.find(directory, (parquet.SUFFIX,))) if few else []
    if tables:
        return parquet.read(directory, tables, split_by, skip_damaged)
    return folder.read(directory, files, split_by, skip_damaged)
