"""`python -m trainer directions`: attribute directions of a finished run, anew or for labels of the user's own.

This is how a model learns a new edit without training: from the labels of the data set, from a CSV for its images, or
from two folders of images of faces with and without something. New attributes go beside those that the run has; one of
a name that it has takes its place.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer import run_folder
from trainer.artifacts import derived
from trainer.artifacts.directions import MIN_IMAGES, Direction, directions_of, load_directions
from trainer.artifacts.encode import encode
from trainer.config import Kind, TrainConfig
from trainer.data import Index, Pack, load_data_for, read_index
from trainer.data.folder import SUFFIXES, find
from trainer.data.labels import relabel
from trainer.errors import ConfigError, DataError, RunError
from trainer.hardware.device import Placement
from trainer.run_folder import DIRECTIONS, MODEL, PRIOR, SAMPLES, belongs, sha256_of

logger = logging.getLogger(__name__)

_FILE_BYTES = 4_000_000
"""About what directions and prior take on disk."""


def _labelled(index: Index, csv: Path | None) -> tuple[Index, tuple[str, ...]]:
    """The data set with the labels of a CSV beside its own, and the attributes whose directions are asked for.

    Images that the CSV doesn't list are in no split.

    Raises:
        DataError: the CSV cannot be used.
    """
    if csv is None:
        return index, index.attributes
    new = relabel(index, csv, some=True)
    others = [column for column, name in enumerate(index.attributes) if name not in new.attributes]
    names = tuple(index.attributes[column] for column in others)
    labels = np.hstack([index.labels[:, others], new.labels])
    return replace(new, attributes=names + new.attributes, labels=labels), new.attributes


def from_data(
    run: Path, directory: Path, kind: Kind | None = None, csv: Path | None = None, *, align: bool = False
) -> str:
    """Computes directions from the train split of a data set; writes the prior and the samples as well if need be.

    Args:
        run: a finished run folder.
        directory: the data set that it was trained on. Of another one directions are computed all the same, but a
            prior that the run has stays.
        kind: of the directions; None: the run's.
        csv: labels of some or all of the images, with the header `file,NAME,...`; None: the data set's own.
        align: find and align faces, as of a run that was trained so.

    Returns:
        What became of the run's directions, see `derived.write_directions`.

    Raises:
        TrainerError: the run, the data set or the labels cannot be used, or no attribute has enough images.
    """
    config, resolved = run_folder.load_config(run)
    with run_folder.occupied(run, _FILE_BYTES):  # so that the weights stay what they are
        place = Placement.of()
        model = place.module(run_folder.load_model(run))
        data = load_data_for(config, resolved, directory, align=align)
        own = data.fingerprint == resolved.get("data_fingerprint")
        if own:
            data = replace(data, index=data.index.limited(config.limit_train))
        else:
            logger.warning("%s is not what %s was trained on, or its files have changed since", directory, run)
        index, wanted = _labelled(data.index, csv)
        rows = index.rows("train")
        if not (run / SAMPLES).exists():
            derived.write_samples(run, data)
        needs_prior = (own and csv is None) or not belongs(run / PRIOR, sha256_of(run / MODEL))
        if needs_prior:
            mu = derived.write_prior(run, model, place, data)[np.searchsorted(data.rows("train"), rows)]
        else:
            mu, _ = encode(model, data.images, rows, place)
        found = directions_of(mu, index.labels[rows], index.attributes, kind or config.directions, wanted)
        if wanted and not found:
            raise DataError(
                f"{csv or directory}: no attribute has {MIN_IMAGES} images of the train split with it and as many "
                f"without it; label more images, or give two folders by --with and --without"
            )
        _tell(found)
        return derived.write_directions(run, found, model.config.latent_dim)


def from_folders(
    run: Path, having: Path, lacking: Path, name: str, kind: Kind | None = None, *, align: bool = False
) -> str:
    """Computes the direction of an attribute from two folders of images.

    Args:
        run: a finished run folder.
        having: images of faces with the attribute, framed as the training images were.
        lacking: images of faces without it.
        name: of the attribute.
        kind: of the direction; None: the run's, and mean where that is adjusted, as there is nothing to adjust for.
        align: find and align faces, as of a run that was trained so.

    Returns:
        As `from_data`.

    Raises:
        TrainerError: the run isn't finished, or a folder cannot be used or holds too few images.
    """
    if kind == "adjusted":
        raise ConfigError(
            "--kind adjusted: holds other attributes equal, and folders say nothing of them; give --kind mean or svm, "
            "or --data DIR --labels CSV"
        )
    folders = having.resolve(), lacking.resolve()
    if folders[0].is_relative_to(folders[1]) or folders[1].is_relative_to(folders[0]):
        raise ConfigError(f"--with {having} --without {lacking}: one holds the other; give two folders apart")
    config, _ = run_folder.load_config(run)
    kind = kind or ("mean" if config.directions == "adjusted" else config.directions)
    with run_folder.occupied(run, _FILE_BYTES):
        place = Placement.of()
        model = place.module(run_folder.load_model(run))
        if not belongs(run / DIRECTIONS, sha256_of(run / MODEL)):
            raise RunError(
                f"{run} has no directions of its weights yet; first finish its training with `python -m trainer train "
                f"--resume`, or, to have those of its data, {run_folder.mend_of(run)}"
            )
        sides = [_images(folder, flag, config, align) for flag, folder in (("with", having), ("without", lacking))]
        if twice := len({image.tobytes() for image in sides[0]} & {image.tobytes() for image in sides[1]}):
            logger.warning("%d images are in %s as well as in %s; take them out of one", twice, having, lacking)
        mu = np.concatenate([encode(model, images, np.arange(len(images)), place)[0] for images in sides])
        labels = np.repeat([True, False], [len(images) for images in sides])[:, None]
        found = directions_of(mu, labels, (name,), kind)
        _tell(found)
        return derived.write_directions(run, found, mu.shape[1], split="folders")


def drop(run: Path, names: Sequence[str]) -> str:
    """Takes directions out of a run; returns what `from_data` does.

    Raises:
        RunError: the run has no directions of a name, or the file cannot be read or written.
    """
    config, _ = run_folder.load_config(run)
    with run_folder.occupied(run, _FILE_BYTES):
        known = [direction.name for direction in load_directions(run / DIRECTIONS)[0]]
        if unknown := [name for name in names if name not in known]:
            has = ", ".join(known) or "none at all"
            raise RunError(f"--drop {' '.join(unknown)}: {run} has no such directions; it has {has}")
        return derived.write_directions(run, [], config.model.latent_dim, without=tuple(dict.fromkeys(names)))


def _tell(found: Sequence[Direction]) -> None:
    for direction in found:
        sides = direction.positives, direction.negatives
        logger.info("%s (%s): %d images with it, %d without", direction.name, direction.kind, *sides)


def _images(folder: Path, flag: str, config: TrainConfig, align: bool) -> NDArray[np.uint8]:
    """All images of a folder, as the run sees them."""

    def require_enough(count: int) -> None:
        if count < MIN_IMAGES:
            raise DataError(f"--{flag} {folder}: holds {count} images; a direction needs {MIN_IMAGES} on either side")

    if folder.is_dir() and (files := list(find(folder, SUFFIXES))):
        require_enough(len(files))
    index = read_index(folder, skip_damaged=config.skip_damaged)
    images = Pack.of(index, config.frame, align or config.align).intact()
    require_enough(len(images))
    return images
