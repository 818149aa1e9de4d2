"""Parquet files with a column of images, as Hugging Face's `datasets` writes them: a struct of bytes and path.

Columns of bool, or of integers that are all 0 and 1 or all -1 and 1, are attributes.
"""

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.data.index import SPLITS, Index, SplitBy, draw
from trainer.errors import DataError

logger = logging.getLogger(__name__)

SUFFIX = ".parquet"
_SPLIT = re.compile(r"(?:^|[/-])(train|val|test)(?:id|idation)?(?=[-./])")
"""What `datasets` calls the files of a split, such as data/validation-00000-of-00002.parquet or test/0000.parquet."""
_reading = Lock()
"""Held while a row group is read, so that the threads that decode images don't all read the same one."""


@dataclass(frozen=True)
class ParquetImage:
    """The image in one row of a file."""

    path: Path
    column: str
    row: int

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """The encoded bytes, as a file; empty if the row has none."""
        group, row = 0, self.row
        with _reading:
            file = _open(self.path)
            while row >= file.metadata.row_group(group).num_rows:
                row -= file.metadata.row_group(group).num_rows
                group += 1
            cell = _group(self.path, group, self.column)[row].as_py()
        encoded = cell["bytes"] if isinstance(cell, dict) else cell
        return io.BytesIO(encoded or b"")

    def __str__(self) -> str:
        return f"{self.path}, row {self.row},"


@dataclass(frozen=True)
class ParquetIndex(Index):
    """An index whose names are a parquet file, `/`, and the number of a row in it, from 0."""

    layout: str = "parquet files"
    removal: str = "remove its row"
    column: str = "image"

    def path(self, row: int) -> Path:
        """The file that an image lies in."""
        return self.folder / self.files[row].rpartition("/")[0]

    def image(self, row: int) -> ParquetImage:
        """An image, to be opened."""
        return ParquetImage(self.path(row), self.column, int(self.files[row].rpartition("/")[2]))


def read(directory: Path, names: Sequence[str], split_by: SplitBy, skip_damaged: int) -> ParquetIndex:
    """Reads the columns of labels; opens no image.

    The splits are those that the names of the files, relative to the folder, tell; val or test is drawn from train by
    name where they have none, and so are all of them where a name tells no split.

    Raises:
        DataError: pyarrow is not installed, or a file is damaged or has no column of images.
    """
    if split_by != "name":
        raise DataError(f"--split-by {split_by}: the images of {directory} are in parquet files, not in folders")
    try:
        import pyarrow  # noqa: F401, PLC0415  (an extra)
    except ImportError as error:
        raise DataError(
            f"{directory} holds parquet files, which need pyarrow ({error}); pip install 'dfc-vae[parquet]'"
        ) from error
    _open.cache_clear()  # a file may have changed since
    _group.cache_clear()
    files = {name: _open(directory / name) for name in names}
    column = _image_column(directory / names[0], next(iter(files.values())).schema_arrow)
    for name, file in files.items():
        if column not in file.schema_arrow.names:
            raise DataError(f"{directory / name} has no column {column}, as {names[0]} has; keep files of one kind")
    labels = _labels(directory, files)
    rows = [f"{name}/{row}" for name, file in files.items() for row in range(file.metadata.num_rows)]
    values = np.stack(list(labels.values()), 1) if labels else np.zeros((len(rows), 0), np.bool_)
    index = ParquetIndex(directory, directory, tuple(rows), tuple(labels), values, _splits(directory, rows))
    return replace(index, skip_damaged=skip_damaged, column=column)


@cache
def _open(path: Path) -> Any:
    import pyarrow.parquet  # noqa: PLC0415

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet ({error}); fetch it again") from error


@lru_cache(maxsize=2)
def _group(path: Path, group: int, column: str) -> Any:
    return _open(path).read_row_group(group, columns=[column]).column(column)


def _image_column(path: Path, schema: Any) -> str:
    """The column of images: a struct with bytes, or bytes; the one called image if there are several."""
    from pyarrow import types  # noqa: PLC0415

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    columns: list[str] = [field.name for field in schema if holds_bytes(field.type)]
    if "image" in columns:
        return "image"
    if len(columns) != 1:
        raise DataError(
            f"{path}: {len(columns)} columns may hold images, of {', '.join(schema.names)}; needs a column `image` of "
            "encoded images, as Hugging Face's datasets writes it"
        )
    return columns[0]


def _labels(directory: Path, files: dict[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """The attributes, each (N,) bool."""
    from pyarrow import types  # noqa: PLC0415

    first, *others = (file.schema_arrow for file in files.values())
    names = [field.name for field in first if types.is_boolean(field.type) or types.is_integer(field.type)]
    names = [name for name in names if all(name in schema.names for schema in others)]
    tables = [file.read(columns=names) for file in files.values()]
    labels = {}
    for name in names:
        columns = [table.column(name) for table in tables]
        found = {value for column in columns for value in column.unique().to_pylist()}
        if found <= {0, 1} or found <= {-1, 1}:
            labels[name] = np.concatenate([column.to_numpy() > 0 for column in columns])
    others_named = sorted(set(names) - set(labels))
    if others_named:
        logger.info("%s: no attributes, as they are not 0 and 1: %s", directory, ", ".join(others_named))
    return labels


def _splits(directory: Path, rows: Sequence[str]) -> NDArray[np.int8]:
    drawn = draw(directory, rows, "name")
    told = [(_SPLIT.findall(row) or [None])[-1] for row in rows]
    if None in told or "train" not in told:
        return drawn
    splits = np.array([SPLITS.index(split) for split in told if split], np.int8)
    train = splits == SPLITS.index("train")
    missing = [SPLITS.index(split) for split in SPLITS if split not in told]
    return np.where(train & np.isin(drawn, missing), drawn, splits)
