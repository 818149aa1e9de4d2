"""CelebA's layout on disk: images in a folder, and two lists beside it.

DIR/img_align_celeba/000001.jpg ...
DIR/list_attr_celeba.txt        count; attribute names; then `file 1 -1 ...`, one value per attribute
DIR/list_eval_partition.txt     `file split`: 0 train, 1 val, 2 test
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.dataset.index import SPLITS, Index
from trainer.errors import DataError

IMAGES, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"


def find_root(directory: Path) -> Path | None:
    """The folder in CelebA's layout: `directory`, or the folder `celeba` in it; None if neither has any part of it.

    Raises:
        DataError: some parts are there and others are missing, or `directory` is the folder of images itself.
    """
    if directory.name == IMAGES and (directory.parent / ATTRIBUTES).is_file():
        raise DataError(f"{directory} holds the images of CelebA's layout without its lists; give {directory.parent}")
    for root in (directory, directory / "celeba"):
        missing = [name for name in (ATTRIBUTES, PARTITION) if not (root / name).is_file()]
        if not (root / IMAGES).is_dir():
            missing.insert(0, f"{IMAGES}/")
        if not missing:
            return root
        if len(missing) < 3:
            raise DataError(
                f"{root}/{missing[0]} is missing; CelebA's layout is {IMAGES}/, {ATTRIBUTES} and {PARTITION} in one "
                "folder; a plain folder of images has none of the three"
            )
    return None


def read(root: Path) -> Index:
    """Reads and checks the two lists, and that every image is there.

    Raises:
        DataError: something is missing, truncated or malformed; names the file and the line.
    """
    files, attributes, labels = _read_attributes(root / ATTRIBUTES)
    splits = _read_partition(root / PARTITION)
    for name in files:
        if name not in splits:
            raise DataError(
                f"{root / PARTITION}: {name}, line {_line_of(name, root / ATTRIBUTES)} of {ATTRIBUTES}, has no split "
                f"there; add the line `{name} 0` for the train split, 1 for val, 2 for test"
            )
    by_row = np.array([splits[name] for name in files], np.int8)
    for number, split in enumerate(SPLITS):
        if not (by_row == number).any():
            raise DataError(
                f"{root / PARTITION}: no image of {ATTRIBUTES} is in the {split} split ({number}); each of train (0), "
                "val (1) and test (2) needs some"
            )
    index = Index(root, root / IMAGES, files, attributes, labels, by_row, (root / ATTRIBUTES, root / PARTITION))
    _require_images(index)
    return index


def _require_images(index: Index) -> None:
    try:
        present = set(os.listdir(index.folder))
    except OSError as error:
        raise DataError(f"{index.folder} cannot be read ({error.strerror}); make it readable") from error
    missing = [row for row, name in enumerate(index.files) if name not in present]
    if missing:
        first = index.files[missing[0]]
        others = f", and so are {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(
            f"{index.folder / first} is missing{others}, though line {_line_of(first, index.lists[0])} of {ATTRIBUTES} "
            f"lists it; restore it, or {index.removal}"
        )


def _line_of(name: str, path: Path) -> int:
    """Number of the line, from 1, that begins with a name."""
    return next(number for number, line in enumerate(_lines(path), start=1) if line.split()[:1] == [name])


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}); restore it") from error
    if not text.strip():
        raise DataError(f"{path} is empty; restore it")
    return text.splitlines()


def _read_attributes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.bool_]]:
    lines = _lines(path)
    if len(lines) < 3:
        raise DataError(f"{path}: {len(lines)} line(s); needs the count, the attribute names, then images")
    try:
        count = int(lines[0])
    except ValueError:
        raise DataError(
            f"{path}, line 1: '{lines[0][:60]}' is not the number of images; the lines are the count, the attribute "
            "names, then images"
        ) from None
    attributes = tuple(lines[1].split())
    if not attributes or len(set(attributes)) != len(attributes):
        raise DataError(f"{path}, line 2: needs the attribute names, each once; found '{lines[1][:60]}'")
    files: list[str] = []
    values: list[str] = []
    for number, line in enumerate(lines[2:], start=3):
        name, *cells = line.split() or [""]
        if not name:
            continue
        if len(cells) != len(attributes):
            raise DataError(
                f"{path}, line {number} ({name}): {len(cells)} values, but line 2 names {len(attributes)} attributes"
            )
        files.append(name)
        values.append(" ".join(cells))
    if len(files) != count or not files:
        raise DataError(
            f"{path}: line 1 announces {count} images, {len(files)} rows follow; the file is truncated or line 1 wrong"
        )
    _require_once(path, files)
    labels = _parse_labels(values, len(attributes))
    if labels is None:
        raise _wrong_value(path, lines)
    return tuple(files), attributes, labels


def _parse_labels(values: list[str], num_attributes: int) -> NDArray[np.bool_] | None:
    """Rows such as "1 -1 1" as (N, A) bool, or None if anything else stands there; CelebA has eight million values."""
    text = " ".join(values) + " "
    if "0" in text:
        return None
    cells = np.frombuffer(text.replace("-1", "0").encode(), np.uint8)
    if len(cells) != 2 * len(values) * num_attributes:
        return None
    marks, spaces = cells.reshape(-1, 2).T
    if not np.isin(marks, (ord("0"), ord("1"))).all() or not (spaces == ord(" ")).all():
        return None
    labels: NDArray[np.bool_] = (marks == ord("1")).reshape(len(values), num_attributes)
    return labels


def _wrong_value(path: Path, lines: list[str]) -> DataError:
    """The error that names the first value that is neither 1 nor -1."""
    for number, line in enumerate(lines[2:], start=3):
        name, *cells = line.split() or [""]
        wrong = [cell for cell in cells if cell not in ("1", "-1")]
        if wrong:
            return DataError(f"{path}, line {number} ({name}): '{wrong[0]}' is neither 1 nor -1")
    raise AssertionError("every value is 1 or -1")


def _read_partition(path: Path) -> dict[str, int]:
    splits: dict[str, int] = {}
    names = []
    for number, line in enumerate(_lines(path), start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 2 or cells[1] not in ("0", "1", "2"):
            raise DataError(f"{path}, line {number}: '{line[:60]}' is not `file split` with split 0, 1 or 2")
        splits[cells[0]] = int(cells[1])
        names.append(cells[0])
    _require_once(path, names)
    return splits


def _require_once(path: Path, names: list[str]) -> None:
    if len(set(names)) == len(names):
        return
    repeated, times = Counter(names).most_common(1)[0]
    raise DataError(f"{path} lists {repeated} {times} times; keep one line an image")
