"""Images in CelebA's on-disk layout, decoded once into a packed uint8 array that is memory-mapped ever after.

DIR/img_align_celeba/000001.jpg ...
DIR/list_attr_celeba.txt        count; attribute names; then `file 1 -1 ...`, one value per attribute
DIR/list_eval_partition.txt     `file split`: 0 train, 1 val, 2 test
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import CenterCrop, Compose, Resize
from tqdm import tqdm

from trainer.errors import DataError

IMAGES, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
SPLITS = ("train", "val", "test")
PACK_VERSION = 1


@dataclass(frozen=True)
class Index:
    """What the two lists of CelebA's layout say.

    Attributes:
        root: the folder that holds the lists.
        files: the N image names, in the order of the list.
        attributes: the A attribute names, from the list's header.
        labels: (N, A) bool, True where the image has the attribute.
        splits: (N,) int8, 0 train, 1 val, 2 test.
    """

    root: Path
    files: tuple[str, ...]
    attributes: tuple[str, ...]
    labels: NDArray[np.bool_]
    splits: NDArray[np.int8]


@dataclass(frozen=True)
class FaceData:
    """An index and its images.

    Attributes:
        index: names, labels and splits.
        images: (N, S, S, 3) uint8 RGB, memory-mapped.
        fingerprint: hex digest of what the array was made from; an exact resume asks for the same one.
    """

    index: Index
    images: NDArray[np.uint8]
    fingerprint: str

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of `images` that belong to a split: "train", "val" or "test"."""
        return np.flatnonzero(self.index.splits == SPLITS.index(split))


def load(directory: Path, image_size: int, crop: int) -> FaceData:
    """Reads a data set, packing its images if no packed array fits.

    The images are prepared as in the seed document, CenterCrop(crop) and Resize(image_size), bilinear; its random
    flip and its scaling to [0, 1] happen per batch, on the device.

    Args:
        directory: a folder in CelebA's layout, or one that holds such a folder named `celeba`.
        image_size: side S of the packed images, pixels.
        crop: side of the centre crop, pixels; 0 takes the whole image (and the centre of one that is not square).

    Raises:
        DataError: a list or an image is missing, truncated, malformed or undecodable.
    """
    index = read_index(directory)
    fingerprint = _fingerprint(index, image_size, crop)
    path = _packed_path(index.root, fingerprint, image_size)
    if not path.is_file():
        _pack(index, path, image_size, crop)
    images = np.load(path, mmap_mode="r")
    shape = (len(index.files), image_size, image_size, 3)
    if images.shape != shape or images.dtype != np.uint8:
        raise DataError(f"{path} holds {images.dtype} {images.shape}, not uint8 {shape}; delete it")
    return FaceData(index, images, fingerprint)


def read_index(directory: Path) -> Index:
    """Reads and checks the two lists, and that every image is there.

    Raises:
        DataError: something is missing, truncated or malformed; names the file and the line.
    """
    root = _find_root(directory)
    files, attributes, labels = _read_attributes(root / ATTRIBUTES)
    splits = _read_partition(root / PARTITION)
    present = {entry.name for entry in os.scandir(root / IMAGES)}
    for row, name in enumerate(files):
        if name not in splits:
            raise DataError(f"{root / PARTITION}: {name}, line {row + 3} of {ATTRIBUTES}, has no split there")
        if name not in present:
            raise DataError(
                f"{root / IMAGES / name} is missing, though line {row + 3} of {ATTRIBUTES} lists it; "
                "restore it or remove its line and lower the count in line 1"
            )
    by_row = np.array([splits[name] for name in files], np.int8)
    for number, split in enumerate(SPLITS):
        if not (by_row == number).any():
            raise DataError(f"{root / PARTITION}: no image is in the {split} split ({number}); each needs some")
    return Index(root, files, attributes, labels, by_row)


def _find_root(directory: Path) -> Path:
    for root in (directory, directory / "celeba"):
        if (root / IMAGES).is_dir():
            missing = [name for name in (ATTRIBUTES, PARTITION) if not (root / name).is_file()]
            if missing:
                raise DataError(f"{root / missing[0]} is missing; it belongs to CelebA's layout, beside {IMAGES}/")
            return root
    raise DataError(
        f"{directory} is not in CelebA's layout: it has no folder {IMAGES}; point --data at the folder that holds "
        f"{IMAGES}/, {ATTRIBUTES} and {PARTITION}, or draw one with `python -m trainer faces {directory}`"
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def _read_attributes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.bool_]]:
    lines = _lines(path)
    if len(lines) < 3:
        raise DataError(f"{path}: {len(lines)} line(s); needs the count, the attribute names, then images")
    try:
        count = int(lines[0])
    except ValueError:
        raise DataError(f"{path}, line 1: '{lines[0][:60]}' is not the number of images") from None
    attributes = tuple(lines[1].split())
    if not attributes or len(set(attributes)) != len(attributes):
        raise DataError(f"{path}, line 2: needs the attribute names, each once; found '{lines[1][:60]}'")
    rows = [line for line in lines[2:] if line.strip()]
    files: list[str] = []
    values: list[list[str]] = []
    for number, row in enumerate(rows, start=3):
        name, *cells = row.split()
        if len(cells) != len(attributes):
            raise DataError(
                f"{path}, line {number} ({name}): {len(cells)} values, but line 2 names {len(attributes)} attributes"
            )
        wrong = set(cells) - {"1", "-1"}
        if wrong:
            raise DataError(f"{path}, line {number} ({name}): '{min(wrong)}' is neither 1 nor -1")
        files.append(name)
        values.append(cells)
    if len(rows) != count:
        raise DataError(
            f"{path}: line 1 announces {count} images, {len(rows)} rows follow; the file is truncated or line 1 wrong"
        )
    return tuple(files), attributes, np.array(values) == "1"


def _read_partition(path: Path) -> dict[str, int]:
    splits: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 2 or cells[1] not in ("0", "1", "2"):
            raise DataError(f"{path}, line {number}: '{line[:60]}' is not `file split` with split 0, 1 or 2")
        splits[cells[0]] = int(cells[1])
    return splits


def _fingerprint(index: Index, image_size: int, crop: int) -> str:
    """Changes with the preparation, the list of images, and the size or time of any image or list."""
    digest = hashlib.sha256(f"{PACK_VERSION} {image_size} {crop}\n".encode())
    stats = {entry.name: entry.stat() for entry in os.scandir(index.root / IMAGES)}
    for name in index.files:
        digest.update(f"{name} {stats[name].st_size} {stats[name].st_mtime_ns}\n".encode())
    for name in (ATTRIBUTES, PARTITION):
        digest.update((index.root / name).read_bytes())
    return digest.hexdigest()


def _packed_path(root: Path, fingerprint: str, image_size: int) -> Path:
    """Beside the images where that is allowed, else in the user's cache."""
    folder = root / "packed"
    if not os.access(root, os.W_OK):
        cache = os.environ.get("XDG_CACHE_HOME", "")
        folder = (Path(cache) if cache else Path.home() / ".cache") / "dfc-vae" / "packed"
    return folder / f"{image_size}px-{fingerprint[:16]}.npy"


def _pack(index: Index, path: Path, image_size: int, crop: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cropping = [CenterCrop(crop)] if crop else []
    prepare = Compose([*cropping, Resize(image_size), CenterCrop(image_size)])

    def decode(name: str) -> NDArray[np.uint8]:
        file = index.root / IMAGES / name
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{file} cannot be decoded ({error}); replace it or remove its line") from error
        if min(image.size) < crop:
            raise DataError(
                f"{file} is {image.width}x{image.height}, smaller than the crop of {crop}; use --crop 0 for images "
                "that are cropped already"
            )
        return np.asarray(prepare(image), np.uint8)

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shape = (len(index.files), image_size, image_size, 3)
    try:
        packed = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes outside the interpreter lock
            try:
                decoded = pool.map(decode, index.files)
                for row, image in enumerate(tqdm(decoded, "packing images", len(index.files), unit="image")):
                    packed[row] = image
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        packed.flush()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
