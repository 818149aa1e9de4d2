"""A Parquet data set that grows part by part: a part is there as a whole, or not at all.

The data set is a folder of files `part-NNNNNN.parquet`, as Spark, Ray and pyarrow read and write them: they pass over
names that begin with `_` or a dot.

Shapes: N images, latents of dimension D.
"""

import csv
import fcntl
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.arrays import Floats
from engine.client.cli.outputs import UsageError, naming
from engine.process.files import write_whole

_PART = re.compile(r"part-(\d{6,})\.parquet")
_LOCK, _DAMAGED = "_lock", "_damaged.csv"
_FINGERPRINT = b"dfcvae.fingerprint"


class Parts:
    """The data set of latents of one model, open to this process alone: `path`, and `mu`, float32 [D].

    Raises:
        UsageError: When the folder has other files or damaged ones, or latents of another model, or another process
            writes to it.
    """

    def __init__(self, folder: Path, latent_dim: int, fingerprint: str) -> None:
        self._folder = folder
        fields = [pa.field("path", pa.string()), pa.field("mu", pa.list_(pa.float32(), latent_dim))]
        self._schema = pa.schema(fields, {_FINGERPRINT: fingerprint.encode()})
        if folder.is_file():
            raise UsageError(f"{folder} is a file, and OUT a folder of Parquet files; name another OUT")
        folder.mkdir(exist_ok=True)
        others = [name for name in os.listdir(folder) if not (_PART.fullmatch(name) or name.startswith(("_", ".")))]
        if others:
            raise UsageError(f"{folder} has files of something else, {others[0]} for example; name another OUT")
        self._lock = (folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(f"another process is writing to {folder}; wait for it, or name another OUT") from None
        self._next = 0
        self.done = self._read_paths()
        """Paths of the images whose latents are there."""

    def append(self, rows: Sequence[tuple[str, Floats]]) -> None:
        """Adds a part: path and latent, float32 [D], of N images that aren't there yet."""
        paths, latents = [path for path, _ in rows], np.stack([mu for _, mu in rows])
        mu = pa.FixedSizeListArray.from_arrays(pa.array(latents.ravel(), pa.float32()), latents.shape[1])
        table = pa.Table.from_arrays([pa.array(paths, pa.string()), mu], schema=self._schema)
        part = self._folder / f"part-{self._next:06}.parquet"
        file = pa.BufferOutputStream()
        pq.write_table(table, file)
        with naming(part):
            write_whole(part, memoryview(file.getvalue()))
        self._next += 1
        self.done.update(paths)

    def list_damaged(self, damaged: Sequence[tuple[str, str]]) -> Path | None:
        """Writes the paths of images that can't be encoded, and why; the file, or None where there are none."""
        path = self._folder / _DAMAGED
        path.unlink(missing_ok=True)
        if not damaged:
            return None
        with path.open("w", newline="", errors="backslashreplace") as file:
            csv.writer(file).writerows([("path", "error"), *damaged])
        return path

    def close(self) -> None:
        """Lets other processes write."""
        self._lock.close()

    def _read_paths(self) -> set[str]:
        paths: set[str] = set()
        for match in filter(None, map(_PART.fullmatch, sorted(os.listdir(self._folder)))):
            file = self._folder / match[0]
            try:
                part = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise UsageError(f"{file} is damaged ({error}); remove it, and its images are encoded again") from None
            if (part.schema_arrow.metadata or {}).get(_FINGERPRINT) != self._schema.metadata[_FINGERPRINT]:
                raise UsageError(
                    f"{self._folder} has latents of another model; name another OUT, or remove {self._folder}"
                )
            paths.update(part.read(["path"])["path"].to_pylist())
            self._next = int(match[1]) + 1
        return paths
