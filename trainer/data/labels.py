"""A user's own labels: a CSV for the images of a data set, whatever its layout."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import defaultdict
from pathlib import Path

import numpy as np

from trainer.data.index import LEFT_OUT, Index
from trainer.data.table import Labels, leave_out_absent, line_error, read_labels
from trainer.errors import DataError


def relabel(index: Index, path: Path, *, some: bool = False) -> Index:
    """The same images with the labels of a CSV instead of their own, see `read_index`.

    Args:
        index: the images.
        path: the CSV.
        some: it may list some of the images only; the others are in no split then.

    Raises:
        DataError: the CSV is missing or malformed, or its images are not those of the data set; names the line or the
            image.
    """
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"--labels {path}: {found}; give a CSV with the header `file,Smiling,...`")
    labels = read_labels(path)
    row_of, absent = _match(index, labels)
    mend = f"names are relative to {index.folder}, such as {index.files[0]}"
    if some:
        mend += "; remove the lines of images that are not there"
    # A list of none of the images is another set's.
    index = leave_out_absent(index, labels, absent, mend, may_skip=bool(row_of) and not some)
    without = [name for row, name in enumerate(index.files) if row not in row_of]
    if without and not some:
        raise DataError(
            f"{path} lists {len(row_of)} of the {len(index.files)} images of {index.root} and not {without[0]}; add a "
            "line for each of the others, or move them away"
        )
    rows = sorted(row_of)
    values = np.zeros((len(index.files), len(labels.attributes)), np.bool_)
    values[rows] = labels.values[[row_of[row] for row in rows]]
    splits = np.full_like(index.splits, LEFT_OUT)
    splits[rows] = index.splits[rows]
    return dataclasses.replace(index, attributes=labels.attributes, labels=values, splits=splits)


def _match(index: Index, labels: Labels) -> tuple[dict[int, int], list[int]]:
    """The row of the list that each listed image has, by the row of the image; and the rows without an image."""
    rows, by_base_name = defaultdict(list), defaultdict(list)
    for row, name in enumerate(map(_composed, index.files)):
        rows[name].append(row)
        by_base_name[name.rpartition("/")[2]].append(row)
    row_of: dict[int, int] = {}
    absent = []
    for row, (line, name) in enumerate(zip(labels.lines, labels.files, strict=True)):
        key = _composed(name)
        found = rows.get(key.removeprefix("./")) or by_base_name.get(key, [])
        if len(found) > 1:
            several = " and ".join(index.files[image] for image in found[:2])
            raise line_error(labels.path, line, f"{name} may be {several}; give the name with its folders")
        if not found:
            absent.append(row)
        elif found[0] in row_of:
            first = labels.lines[row_of[found[0]]]
            raise line_error(labels.path, line, f"{name} is the image of line {first}, too; keep one line an image")
        else:
            row_of[found[0]] = row
    return row_of, absent


def _composed(name: str) -> str:
    """A name with its accents in one form: a Mac writes them apart from their letters, a keyboard doesn't."""
    return unicodedata.normalize("NFC", name)
