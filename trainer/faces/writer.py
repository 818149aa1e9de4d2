"""Procedural faces: a data set in CelebA's on-disk layout, drawn rather than downloaded.

`sample_face` decides who is drawn, `render_face` draws, `write_faces` writes:

    DIR/img_align_celeba/000001.jpg ...   178 x 218 RGB
    DIR/list_attr_celeba.txt              count; attribute names; one row of 1 and -1 per image
    DIR/list_eval_partition.txt           0 train, 1 validation, 2 test; contiguous, 80/10/10 %
    DIR/faces.json                        seed, version and the share of faces that have each attribute
"""

import functools
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from joblib import cpu_count
from PIL import Image
from tqdm import tqdm

from trainer.errors import ConfigError
from trainer.faces.person import ATTRIBUTES, sample_face
from trainer.faces.picture import render_face
from trainer.signals import held_back

FACES_VERSION = 4  # rises whenever the same seed gives other pictures or labels

_JPEG_QUALITY = 92
_CHUNK = 8  # faces per task: what an interrupt waits for is a fraction of a second of work
_FACE_BYTES = 12_000  # about what a face takes on disk
_MIN_COUNT = 10  # so that each split has a face


def write_faces(directory: Path, count: int, seed: int = 0, workers: int | None = None) -> None:
    """Writes `count` procedural faces in CelebA's layout, on all cores.

    The folder, which may be there if it is empty, appears under its name only when it is complete. The same seed gives
    the same bytes, whatever the number of workers, and a larger count of the same seed begins with the same faces.

    Raises:
        FileExistsError: `directory` is a file, or a folder that is not empty.
        ConfigError: `count`, `seed` or `workers` is too small, the disk is too full for so many, or the folder cannot
            be made.
    """
    workers = cpu_count() if workers is None else workers
    for flag, value, least in (("--count", count, _MIN_COUNT), ("--seed", seed, 0), ("--workers", workers, 1)):
        if value < least:
            raise ConfigError(f"{flag} is {value}, but must be at least {least}; give {flag} {least} or more")
    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not an empty folder; give another folder, or remove it first")
    place = next(folder for folder in directory.parents if folder.is_dir())
    needed, disk = count * _FACE_BYTES, shutil.disk_usage(place)
    if disk.total and needed > disk.free:  # some file systems do not say
        raise ConfigError(
            f"--count {count}: takes about {needed / 1e6:,.0f} MB, and {place} has {disk.free / 1e6:,.0f} MB free; "
            "give fewer, or a folder on another disk"
        )
    with _appearing(directory) as partial:
        images = partial / "img_align_celeba"
        images.mkdir()
        labels = _draw_all(images, count, seed, workers)
        _write_lists(partial, labels)
        _write_summary(partial, labels, seed)


@contextmanager
def _appearing(directory: Path) -> Iterator[Path]:
    """A temporary sibling that takes the directory's name in the end, or is removed if work stops early."""
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had the same number
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made ({error.strerror}); give a folder in another place") from error
    try:
        yield partial
        partial.replace(directory)
    except BaseException:  # KeyboardInterrupt too
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _draw_all(images: Path, count: int, seed: int, workers: int) -> list[frozenset[str]]:
    """Draws faces 0 ... count - 1 into a folder and returns their attributes, in order."""
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    draw = functools.partial(_draw_chunk, images, seed)
    labels: list[frozenset[str]] = []
    # Spawned, so that workers inherit neither threads nor locks of whoever calls.
    context = multiprocessing.get_context("spawn")
    with (
        tqdm(total=count, unit="face", desc="Drawing faces", disable=None) as progress,
        ProcessPoolExecutor(min(workers, len(chunks)), context) as pool,
        held_back() as signals,
    ):
        try:
            for drawn in map(draw, chunks) if workers == 1 else _map_uninterrupted(pool, draw, chunks):
                labels += drawn
                progress.update(len(drawn))
                if signals.received:
                    break
        except BrokenProcessPool as error:
            if not signals.received:  # a supervisor sends SIGTERM to the whole group
                raise ConfigError(
                    f"--workers {workers}: a process that drew faces was killed, perhaps for want of memory; give fewer"
                ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return labels


def _map_uninterrupted(
    pool: ProcessPoolExecutor, draw: Callable[[range], list[frozenset[str]]], chunks: Iterable[range]
) -> Iterator[list[frozenset[str]]]:
    """`pool.map`, by processes that SIGINT doesn't reach: a terminal sends it to the whole group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which processes inherit that start now
    try:
        return pool.map(draw, chunks)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _draw_chunk(images: Path, seed: int, indices: range) -> list[frozenset[str]]:
    faces = [sample_face(seed, index) for index in indices]
    for index, face in zip(indices, faces, strict=True):
        Image.fromarray(render_face(face)).save(images / _file_name(index), quality=_JPEG_QUALITY)
    return [face.labels for face in faces]


def _file_name(index: int) -> str:
    return f"{index + 1:06d}.jpg"  # CelebA counts from 1


def _write_lists(directory: Path, labels: list[frozenset[str]]) -> None:
    count = len(labels)
    attributes = [str(count), " ".join(ATTRIBUTES)]
    for index, held in enumerate(labels):
        values = " ".join(f"{1 if name in held else -1:2d}" for name in ATTRIBUTES)
        attributes.append(f"{_file_name(index)} {values}")
    (directory / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")

    tenth = count // 10
    splits = [0] * (count - 2 * tenth) + [1] * tenth + [2] * tenth
    partition = "".join(f"{_file_name(index)} {split}\n" for index, split in enumerate(splits))
    (directory / "list_eval_partition.txt").write_text(partition)


def _write_summary(directory: Path, labels: list[frozenset[str]], seed: int) -> None:
    summary = {
        "count": len(labels),
        "seed": seed,
        "generator_version": FACES_VERSION,
        "attributes": list(ATTRIBUTES),
        "share": {name: sum(name in held for held in labels) / len(labels) for name in ATTRIBUTES},
    }
    (directory / "faces.json").write_text(json.dumps(summary, indent=2) + "\n")
