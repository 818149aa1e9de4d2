"""Labels: in lists as text, and those of a user's own for the images of a data set, whatever its layout.

A list has one row an image, its cells parted by blanks, tabs, commas or semicolons:

CelebA's list_attr_celeba.txt:  count (some copies lack it); attribute names; then `000001.jpg -1 1 ...`
Kaggle's list_attr_celeba.csv:  `image_id,5_o_Clock_Shadow,...`; then `000001.jpg,-1,1,...`
A user's own labels:            `file,Smiling,...`; then `anna/1.png,1,...`, or True and False
"""

import csv
import dataclasses
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.folder import SUFFIXES
from trainer.data.index import LEFT_OUT, Index
from trainer.errors import DataError

FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_id", "name", "path")
"""What the column of the images is called where its name isn't left out, as in CelebA's own list."""

_VALUES = {"1": 1, "-1": 2, "0": 0, "True": 1, "False": 0, "TRUE": 1, "FALSE": 0}
"""What a cell may say; pandas writes booleans as words, and spreadsheets in capitals."""
_ODD = 3
_EMPTY = " \t\r\f\v,;"
"""What a line of empty cells is made of."""

Row = tuple[int, list[str]]
"""Number of a line, from 1, and its cells."""


@dataclass(frozen=True)
class Labels:
    """The labels in a list."""

    path: Path  # of the list
    files: tuple[str, ...]  # the N image names as they stand there
    lines: tuple[int, ...]  # their N line numbers, from 1
    attributes: tuple[str, ...]  # the A attribute names
    values: NDArray[np.bool_]  # (N, A), True where the image has the attribute
    counted: bool  # whether the first line gives the number of images


def read_labels(path: Path) -> Labels:
    """Reads a list of labels, 1 and -1, or 1 and 0, or True and False.

    Raises:
        DataError: it is empty, truncated or malformed; names the line.
    """
    rows, is_csv = read_rows(path)
    first, second = next(rows), next(rows, (2, [""]))
    announced = first[1][0] if len(first[1]) == 1 and not is_csv else ""
    counted = announced.isdecimal()
    if announced and not counted and not _VALUES.keys() >= set(second[1][1:]):
        said = f"'{announced[:60]}' is not the number of images; needs the count, the attribute names, then images"
        raise line_error(path, first[0], said)
    header_line, header = second if counted else first
    if is_csv and Path(header[0]).suffix.lower() in SUFFIXES:
        said = f"'{header[0][:60]}' is an image where the header is expected; put one before it, such as `file,Smiling`"
        raise line_error(path, header_line, said)
    is_file = [name.lower() in FILE_COLUMNS for name in header]
    if is_csv and any(is_file) and not is_file[0]:
        column = is_file.index(True)
        said = f"'{header[column]}' is column {column + 1}; the images' names must come first, as in `file,Smiling`"
        raise line_error(path, header_line, said)
    if is_csv or is_file[0]:
        header = header[1:]
    if not header or not all(header) or len(set(header)) != len(header):
        raise line_error(path, header_line, f"needs the attribute names, each once; found '{' '.join(header)[:60]}'")
    files: list[str] = []
    lines: list[int] = []
    values: list[bytes] = []
    code = defaultdict(lambda: _ODD, _VALUES).__getitem__
    for number, (name, *cells) in rows if counted else chain([second] if any(second[1]) else [], rows):
        if len(cells) != len(header):
            said = f"{len(cells)} values, but line {header_line} names {len(header)} attributes"
            raise line_error(path, f"{number} ({name})", said)
        files.append(name)
        lines.append(number)
        values.append(bytes(map(code, cells)))
    if not files:
        needs = "a header such as `file,Smiling`" if is_csv else "the count, the attribute names"
        said = f", though line 1 announces {announced}" if counted else ""
        raise DataError(f"{path}: {1 + counted} line(s) and 0 rows of images{said}; needs {needs}, then images")
    if counted and int(announced) != len(files):
        said = f"announces {announced} images, {len(files)} rows follow; the file is truncated or this line wrong"
        raise line_error(path, 1, said)
    _require_once(path, files)
    codes = np.frombuffer(b"".join(values), np.uint8).reshape(len(files), -1)
    _require_two_values(path, lines, header, codes)
    return Labels(path, tuple(files), tuple(lines), tuple(header), codes == _VALUES["1"], counted)


def _require_two_values(path: Path, lines: list[int], header: list[str], codes: NDArray[np.uint8]) -> None:
    """Refuses what is neither 1 nor the list's own word for no, -1 or 0: names the first."""
    negative = codes[(codes == _VALUES["-1"]) | (codes == _VALUES["0"])]
    no = "0" if len(negative) and negative[0] == _VALUES["0"] else "-1"
    known = f"neither 1 nor {no}" if len(negative) else "none of 1, 0 and -1"
    wrong = (codes != _VALUES["1"]) & (codes != _VALUES[no])
    if not wrong.any():
        return
    row, column = np.argwhere(wrong)[0]
    name, *cells = next(cells for number, cells in read_rows(path)[0] if number == lines[row])
    said = (
        f"'{cells[column]}' of {header[column]} is {known}; write 1 where an image has the attribute and {no} where it "
        "has not, or leave the column out"
    )
    raise line_error(path, f"{lines[row]} ({name})", said)


def read_splits(path: Path) -> dict[str, int]:
    """Reads a list of `file split`, with or without a header: 0 train, 1 val, 2 test.

    Raises:
        DataError: it is empty or malformed; names the line.
    """
    names, splits = [], {}
    for row, (number, cells) in enumerate(read_rows(path)[0]):
        if row == 0 and cells[-1] == "partition":
            continue
        if len(cells) != 2 or cells[1] not in ("0", "1", "2"):
            raise line_error(path, number, f"'{' '.join(cells)[:60]}' is not `file split` with split 0, 1 or 2")
        names.append(cells[0])
        splits[cells[0]] = int(cells[1])
    _require_once(path, names)
    return splits


def read_rows(path: Path) -> tuple[Iterator[Row], bool]:
    """The lines of a file that are not blank, at least one, and whether commas or semicolons part their cells.

    Lines whose cells are all empty, as spreadsheets write them, are blank.

    Raises:
        DataError: the file is empty or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: names may hold its other line ends
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); restore it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as text ({error}); restore it, or save it as UTF-8") from error
    first = next((line for line in lines if line.strip(_EMPTY)), None)
    if first is None:
        raise DataError(f"{path} is empty; restore it")
    delimiter = next((mark for mark in ",;" if mark in first), None)

    def split(line: str) -> list[str]:
        if delimiter is None:
            return line.split()
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]

    rows = ((number, split(line)) for number, line in enumerate(lines, start=1) if line.strip(_EMPTY))
    return rows, delimiter is not None


def line_error(path: Path, line: object, said: str) -> DataError:
    """What is wrong with a line of a list; `line` is its number, perhaps with the image's name."""
    return DataError(f"{path}, line {line}: {said}")


def _require_once(path: Path, names: list[str]) -> None:
    if len(set(names)) == len(names):
        return
    repeated, times = Counter(names).most_common(1)[0]
    raise DataError(f"{path} lists {repeated} {times} times; keep one line an image")


def leave_out_absent(index: Index, labels: Labels, absent: Sequence[int], mend: str, *, may_skip: bool = True) -> Index:
    """Records in the index that rows of a list name images that are not there.

    `mend` says what helps; so does `--skip-damaged`, if it `may_skip`.

    Raises:
        DataError: there are more than may be left out; counts them and names the first.
    """
    absences = [f"{labels.files[row]} is absent" for row in absent]
    known = set(index.left_out)  # a CSV of labels may list what CelebA's list has named already
    new = [sentence for sentence in absences if sentence not in known]
    if not new:
        return index
    total = len(index.left_out) + len(new)
    if total > index.skip_damaged:
        first = absent[0]
        others = {1: "", 2: ", nor is another"}.get(len(absent), f", nor are {len(absent) - 1} others")
        raise DataError(
            f"{labels.files[first]} is not in {index.folder}{others}, though line {labels.lines[first]} of "
            f"{labels.path.name} lists it; {mend}"
            + f", or train without what is missing by --skip-damaged {total}"
            * may_skip
        )
    return index.leaving_out(new)


def relabel(index: Index, path: Path, *, some: bool = False) -> Index:
    """The same images with the labels of a CSV instead of their own, see `read_index`.

    With `some` it may list some of the images only; the others are in no split then.

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
    inside = index.folder.relative_to(index.root)
    prefixes = [_composed(f"{folder}/") for folder in (index.folder.absolute(), ".", inside)]
    row_of: dict[int, int] = {}
    absent = []
    for row, (line, name) in enumerate(zip(labels.lines, labels.files, strict=True)):
        key = _composed(name)
        for prefix in prefixes:
            key = key.removeprefix(prefix)
        found = rows.get(key) or by_base_name.get(key, [])
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
