"""All images of a data set in one uint8 array on disk, decoded once and memory-mapped ever after."""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from joblib import cpu_count
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from framing import Aligner, Frame, FramingError
from trainer.data import pixels
from trainer.data.index import LEFT_OUT, REPORTED, Index, shortened
from trainer.data.pixels import Reading
from trainer.errors import ConfigError, DataError
from trainer.signals import held_back

logger = logging.getLogger(__name__)

PACK_VERSION = 3
"""Rises whenever the same files give other pixels."""
PROBED = 100
"""Images whose size is looked at before all are decoded."""
BLOCK = 512
"""Images in memory at once while packing."""
REPORT = "unusable-images.txt"
"""Beside the packed images: all that are damaged, where a message names but some."""


@dataclass(frozen=True)
class Pack:
    """The packed form of a data set, whether it has been written yet or not."""

    index: Index  # the images
    frame: Frame  # what they are brought to; its `size` is the side S of the packed images
    align: bool  # whether faces are found and aligned with the frame first
    path: Path  # the file, in NumPy's format

    @classmethod
    def of(cls, index: Index, frame: Frame, align: bool = False) -> "Pack":
        """Finds the place: beside the images where that is allowed, else in the user's cache."""
        folder = index.root / "packed"
        if not os.access(index.root, os.W_OK):
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dfc-vae" / "packed"
        return cls(index, frame, align, folder / f"{frame.size}px-{_digest(index, frame, align)[:16]}.npy")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, S, S, 3)."""
        return len(self.index.files), self.frame.size, self.frame.size, 3

    @property
    def missing_bytes(self) -> int:
        """Bytes of the pixels that are still to be written."""
        return 0 if self.path.is_file() else int(np.prod(self.shape))

    def free_bytes(self) -> int:
        """Bytes that the disk has left where the file goes."""
        return shutil.disk_usage(next(folder for folder in self.path.parents if folder.is_dir())).free

    def check(self) -> None:
        """Refuses, in a moment, what packing would fail on.

        Raises:
            ConfigError: faces are to be aligned, and the frame or this environment can't.
            DataError: the disk is too full, or none of the images can be brought to the frame.
        """
        if not self.missing_bytes:
            return
        self.aligner()
        needed, free = self.missing_bytes / 1e6, self.free_bytes() / 1e6
        if needed > free:
            raise DataError(
                f"packing {len(self.index.files):,} images of {self.frame.size} pixels needs {needed:,.1f} MB, but "
                f"{self.path.parent} has {free:,.1f} MB free; free some space, or move the data to another disk"
            )
        faults = []
        for row in () if self.align else np.linspace(0, len(self.index.files) - 1, PROBED).round().astype(int):
            source = self.index.image(row)
            try:
                with source.open("rb") as file, Image.open(file) as image:
                    pixels.check_size(source, image.size, self.frame)
                return
            except DataError as error:
                faults.append(error)
            except (OSError, SyntaxError, Image.DecompressionBombError):
                continue  # packing names all that are unusable together
        if faults:
            raise faults[0]

    def aligner(self) -> Aligner | None:
        """What aligns faces with the frame, or None where they aren't to be.

        Raises:
            ConfigError: the frame has no landmarks, or a package is missing.
        """
        try:
            return Aligner(self.frame) if self.align else None
        except FramingError as error:
            raise ConfigError(str(error)) from error

    def data(self) -> "FaceData":
        """The packed images and their index, in which those that are damaged and may be left out are in no split.

        Raises:
            DataError: as for `images`, or nothing is left in a split.
        """
        index, images, damaged = self.index, self.images(), self._damaged()
        if damaged:
            splits = index.splits.copy()
            splits[list(damaged)] = LEFT_OUT
            index = dataclasses.replace(index, splits=splits).leaving_out(tuple(damaged.values()))
            index.require_splits()
        return FaceData(index, images, _fingerprint(self.index, images))

    def intact(self) -> NDArray[np.uint8]:
        """The packed images without damaged ones, (M, S, S, 3) uint8, whatever splits they are in.

        Raises:
            DataError: as for `images`.
        """
        images, damaged = self.images(), self._damaged()
        if not damaged:
            return images
        self.index.leaving_out(tuple(damaged.values()))
        return np.delete(images, list(damaged), axis=0)

    def images(self) -> NDArray[np.uint8]:
        """The packed images, (N, S, S, 3) uint8, memory-mapped; packs them first if that has not been done.

        Damaged images that may be left out are black. Of several processes that ask at once, one packs.

        Raises:
            DataError: an image is unusable (the message names all), the disk is too full, or the packed file is torn.
        """
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
            try:
                held = lock.acquire(timeout=0)
            except Timeout:
                logger.info("another process is packing these images; waiting for it")
                held = lock.acquire()
            with held:
                if not self.path.is_file():
                    self.check()
                    self._write()
        try:
            images: NDArray[np.uint8] = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} is torn ({error}); delete it") from error
        if images.shape != self.shape or images.dtype != np.uint8:
            raise DataError(f"{self.path} holds {images.dtype} {images.shape}, not uint8 {self.shape}; delete it")
        self._refuse_damaged(self._damaged())
        return images

    def _write(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.tmp")  # one name: what a killed process left is overwritten
        try:
            with temporary.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(file, header)
                self._write_pixels(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written ({error.strerror}); it needs {np.prod(self.shape) / 1e6:,.1f} MB: free "
                "some space, or move the data to another disk"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _write_pixels(self, file: BinaryIO) -> None:
        damaged: dict[int, str] = {}
        brought, several = 0, []
        count = len(self.index.files)
        with held_back() as signals, closing(self.decode(np.arange(count))) as results:
            for row, result in enumerate(tqdm(results, "packing images", count, unit="image", disable=None)):
                if signals.received:
                    break
                if isinstance(result, DataError):
                    damaged[row] = str(result).removeprefix(f"{self.index.folder}/")
                    file.write(bytes(int(np.prod(self.shape[1:]))))  # black
                    continue
                brought += result.brought
                if result.faces > 1:
                    several.append(f"{self.index.files[row]} ({result.faces})")
                file.write(result.image.data)
        self._refuse_damaged(damaged)
        self._tell(brought, several)
        self.path.with_name(REPORT).unlink(missing_ok=True)
        self._damaged_list.unlink(missing_ok=True)
        if damaged:
            self._damaged_list.write_text(json.dumps(damaged, indent=2) + "\n")

    def _tell(self, brought: int, several: list[str]) -> None:
        """Logs what was done to pictures that were not in the frame already."""
        count = len(self.index.files)
        if several:
            message = "%d of %d pictures show several faces, the largest is taken: %s"
            logger.warning(message, len(several), count, ", ".join(shortened(several)))
        if self.align:
            logger.info("%d of %d pictures were aligned; %d were framed already", brought, count, count - brought)
        elif brought and self.frame.source:
            logger.info(
                "%d of %d pictures are not %dx%d and were brought to that frame by their size, around their middle; "
                "--dry-run shows what becomes of them, --align finds the faces, --crop 0 takes them whole",
                *(brought, count, *self.frame.source),
            )

    def decode(self, rows: NDArray[np.int64]) -> Generator[Reading | DataError, None, None]:
        """Some images in order, or what is wrong with each.

        Raises:
            ConfigError: faces are to be aligned, and the frame or this environment can't.
        """
        aligner = self.aligner()

        def read(row: int) -> Reading | DataError:
            try:
                return pixels.read(self.index.image(row), self.frame, aligner)
            except DataError as error:
                return error

        with ThreadPoolExecutor(cpu_count()) as pool:  # Pillow works outside the interpreter lock
            try:
                for start in range(0, len(rows), BLOCK):
                    yield from pool.map(read, rows[start : start + BLOCK].tolist())
            finally:
                pool.shutdown(cancel_futures=True)

    @property
    def _damaged_list(self) -> Path:
        return self.path.with_suffix(".damaged.json")

    def _damaged(self) -> dict[int, str]:
        """The rows of the packed images that are damaged, and what is wrong with them."""
        try:
            listed: dict[str, str] = json.loads(self._damaged_list.read_text())
        except FileNotFoundError:
            return {}
        return {int(row): said for row, said in listed.items()}

    def _refuse_damaged(self, damaged: dict[int, str]) -> None:
        """Raises DataError if more images are damaged than may be left out: names them."""
        allowed = len(self.index.left_out) + len(damaged)
        if not damaged or allowed <= self.index.skip_damaged:
            return
        said = [f"{self.index.folder}/{sentence}" for sentence in damaged.values()]
        mend, skip = f"replace it, or {self.index.removal}", f"by --skip-damaged {allowed}"
        if len(said) == 1:
            raise DataError(f"{said[0]}; {mend}, or train without it {skip}")
        report = self.path.with_name(REPORT)
        if len(said) > REPORTED:
            report.write_text("".join(f"{line}\n" for line in said))
        listed = "".join(f"\n  {line}" for line in shortened(said, f", all in {report}"))
        raise DataError(
            f"{len(said)} of {len(self.index.files)} images cannot be used; for each, {mend}; "
            f"or train without them {skip}:{listed}"
        )


@dataclass(frozen=True)
class FaceData:
    """An index and its images."""

    index: Index  # names, labels and splits
    images: NDArray[np.uint8]  # (N, S, S, 3) uint8 RGB, memory-mapped
    # Hex digest of names, labels, splits and pixels, so that a copy has the same one; an exact resume asks for it.
    fingerprint: str

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of `images` that belong to a split: "train", "val" or "test"."""
        return self.index.rows(split)


def _fingerprint(index: Index, images: NDArray[np.uint8]) -> str:
    """Changes with any name, label, split or pixel; what `Index.limited` leaves out still counts as train."""
    pixels = hashlib.sha256()
    for start in range(0, len(images), BLOCK):
        pixels.update(images[start : start + BLOCK].tobytes())
    digest = hashlib.sha256(pixels.hexdigest().encode())
    for names in (index.files, index.attributes):
        digest.update("\n".join(names).encode(errors="surrogateescape") + b"\n\n")
    digest.update(np.packbits(index.labels).tobytes())
    digest.update(np.where(index.splits == LEFT_OUT, 0, index.splits).astype(np.int8).tobytes())
    return digest.hexdigest()


def _digest(index: Index, frame: Frame, align: bool) -> str:
    """Hex digest: changes with preparation, list of images, and size or time of any image, which a copy changes."""
    landmarks = frame.landmarks if align else None
    digest = hashlib.sha256(f"{PACK_VERSION} {frame.size} {frame.crop} {frame.source} {landmarks}\n".encode())
    for row, name in enumerate(index.files):
        try:
            stat = os.stat(index.path(row))
            size, time = stat.st_size, stat.st_mtime_ns
        except OSError:  # such as a link to nothing; whether it may be left out is seen when the images are packed
            size, time = -1, -1
        digest.update(b"%s %d %d\n" % (os.fsencode(name), size, time))
    return digest.hexdigest()
