"""Lists of images as text: one row an image, its cells parted by blanks, tabs, commas or semicolons.

CelebA's list_attr_celeba.txt:  count (some copies lack it); attribute names; then `000001.jpg -1 1 ...`
Kaggle's list_attr_celeba.csv:  `image_id,5_o_Clock_Shadow,...`; then `000001.jpg,-1,1,...`
A user's own labels:            `file,Smiling,...`; then `anna/1.png,1,...`
"""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.dataset.index import Index
from trainer.errors import DataError

FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_id", "name", "path")
"""What the column of the images is called where its name isn't left out, as in CelebA's own list."""

Row = tuple[int, list[str]]
"""Number of a line, from 1, and its cells."""


@dataclass(frozen=True)
class Labels:
    """The labels in a list.

    Attributes:
        path: the list.
        files: the N image names as they stand there.
        lines: their N line numbers, from 1.
        attributes: the A attribute names.
        values: (N, A) bool, True where the image has the attribute.
        counted: whether the first line gives the number of images.
    """

    path: Path
    files: tuple[str, ...]
    lines: tuple[int, ...]
    attributes: tuple[str, ...]
    values: NDArray[np.bool_]
    counted: bool


def read_labels(path: Path) -> Labels:
    """Reads a list of labels, 1 and -1 or 1 and 0.

    Raises:
        DataError: it is empty, truncated or malformed; names the line.
    """
    rows, is_csv = read_rows(path)
    announced = rows[0][1][0] if len(rows[0][1]) == 1 else ""
    counted = announced.isdecimal() and not is_csv
    if announced and not counted and not is_csv and (len(rows) < 2 or not {"1", "0", "-1"}.issuperset(rows[1][1][1:])):
        raise DataError(
            f"{path}, line {rows[0][0]}: '{announced[:60]}' is not the number of images; the lines are the count, the "
            "attribute names, then images"
        )
    (header_line, header), *body = rows[1:] if len(rows) > 1 and counted else rows
    if not body:
        needs = "a header such as `file,Smiling`" if is_csv else "the count, the attribute names"
        said = f", though line 1 announces {announced}" if counted else ""
        raise DataError(f"{path}: {len(rows)} line(s) and 0 rows of images{said}; needs {needs}, then images")
    if is_csv or header[0].lower() in FILE_COLUMNS:
        header = header[1:]
    if not all(header) or not header or len(set(header)) != len(header):
        raise DataError(
            f"{path}, line {header_line}: needs the attribute names, each once; found '{' '.join(header)[:60]}'"
        )
    if counted and int(announced) != len(body):
        raise DataError(
            f"{path}: line 1 announces {announced} images, {len(body)} rows follow; the file is truncated or line 1 "
            "wrong"
        )
    files = [cells[0] for _, cells in body]
    require_once(path, files)
    lines = tuple(number for number, _ in body)
    return Labels(path, tuple(files), lines, tuple(header), _values(path, body, header, header_line), counted)


def _values(path: Path, body: list[Row], header: list[str], header_line: int) -> NDArray[np.bool_]:
    """The cells behind the names as (N, A) bool."""
    no = next((cell for _, cells in body for cell in cells[1:] if cell in ("-1", "0")), "-1")
    values = np.empty((len(body), len(header)), np.bool_)
    for row, (number, (name, *cells)) in enumerate(body):
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number} ({name}): {len(cells)} values, but line {header_line} names {len(header)} "
                "attributes"
            )
        wrong = set(cells) - {"1", no}
        if wrong:
            raise DataError(f"{path}, line {number} ({name}): '{min(wrong, key=cells.index)}' is neither 1 nor {no}")
        values[row] = [cell == "1" for cell in cells]
    return values


def read_splits(path: Path) -> dict[str, int]:
    """Reads a list of `file split`, with or without a header: 0 train, 1 val, 2 test.

    Raises:
        DataError: it is empty or malformed; names the line.
    """
    rows, _ = read_rows(path)
    if rows[0][1][-1] == "partition":
        del rows[0]
    for number, cells in rows:
        if len(cells) != 2 or cells[1] not in ("0", "1", "2"):
            raise DataError(f"{path}, line {number}: '{' '.join(cells)[:60]}' is not `file split` with split 0, 1 or 2")
    require_once(path, [cells[0] for _, cells in rows])
    return {name: int(split) for _, (name, split) in rows}


def read_rows(path: Path) -> tuple[list[Row], bool]:
    """The lines of a file that are not blank, at least one, and whether commas or semicolons part their cells.

    Raises:
        DataError: the file is empty or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        first = next((line for line in lines if line.strip()), None)
        if first is None:
            raise DataError(f"{path} is empty; restore it")
        delimiter = next((mark for mark in ",;" if mark in first), None)
        split = csv.reader(lines, delimiter=delimiter, strict=True) if delimiter else map(str.split, lines)
        rows = [(number, [cell.strip() for cell in cells]) for number, cells in enumerate(split, start=1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as text ({error}); restore it") from error
    return [(number, cells) for number, cells in rows if any(cells)], delimiter is not None


def require_once(path: Path, names: list[str]) -> None:
    """Refuses a list that names an image twice."""
    if len(set(names)) == len(names):
        return
    repeated, times = Counter(names).most_common(1)[0]
    raise DataError(f"{path} lists {repeated} {times} times; keep one line an image")


def leave_out_absent(index: Index, labels: Labels, absent: Sequence[int], mend: str) -> Index:
    """Records in the index that rows of a list name images that are not there.

    Args:
        index: the images that are there.
        labels: the list.
        absent: the rows of the list without an image.
        mend: what helps, beside `--skip-damaged`.

    Raises:
        DataError: there are more than may be left out; counts them and names the first.
    """
    left_out = tuple(dict.fromkeys((*index.left_out, *(f"{labels.files[row]} is absent" for row in absent))))
    if absent and len(left_out) > index.skip_damaged:
        first = absent[0]
        others = f", and so are {len(absent) - 1} others" if len(absent) > 1 else ""
        raise DataError(
            f"{index.folder / labels.files[first]} is missing{others}, though line {labels.lines[first]} of "
            f"{labels.path.name} lists it; {mend}, or leave out what is missing with --skip-damaged {len(left_out)}"
        )
    return dataclasses.replace(index, left_out=left_out)
