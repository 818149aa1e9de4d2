"""The trainer from Python: `from trainer import VAE, presets, train`.

Edits and samples are made by `engine.latents`, pure numpy, so that they are what a server of the
same run answers. Training itself never imports this module.

Shapes: N images, S image side, D latent_dim.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import BundleError, DirectionsError
from engine.latents import Conditions, Directions, Prior, load_priors
from framing import Aligner
from trainer import model, run_folder, training
from trainer.artifacts.encode import decode, encode
from trainer.config import TrainConfig
from trainer.data import pixels
from trainer.errors import RunError
from trainer.hardware.device import Placement
from trainer.preflight import Plan
from trainer.run_folder import DIRECTIONS, PRIOR

T = TypeVar("T")
Images = NDArray[np.uint8]
Floats = NDArray[np.float32]


def train(config: TrainConfig, data: str | Path, out: str | Path, *, resume: bool = False) -> None:
    """Trains, as `python -m trainer train` does, and leaves a run folder.

    Args:
        config: what to compute: a preset, such as `presets.best()`, perhaps changed by `dataclasses.replace`.
        data: the data set, as for the command.
        out: the run folder to write; new, and outside the data set.
        resume: go on from the run folder's checkpoint; start if it has none.

    Raises:
        TypeError: `config` is none.
        TrainerError: something cannot be used or the loss went astray; the message names it and the mend.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig, such as presets.best(), not {config!r}")
    plan = Plan.of(config, Path(data), Path(out), resume)
    training.train(config, plan.data(), Path(out), resume)


class VAE:
    """A trained model: images to latents and back, edits along attribute directions, and new faces.

    Everything is computed in FP32. Images are uint8 RGB (N, S, S, 3), latents float32 (N, D).

    Args:
        run: the run folder.
        network: its model, in evaluation mode, on the device of `place`.
        config: what the run computed.
        place: where to compute.
    """

    def __init__(self, run: Path, network: model.VAE, config: TrainConfig, place: Placement) -> None:
        self.run = run
        self.network = network
        self.config = config
        self._place = place

    @classmethod
    def from_pretrained(cls, run: str | Path, device: str = "auto") -> "VAE":
        """Reads a run folder, or the `config.json` and `model.safetensors` of one.

        Args:
            run: the folder.
            device: "cpu", "cuda", or "auto" for the GPU if there is one.

        Raises:
            RunError: there is no run, or it cannot be read.
            ConfigError: a GPU is asked for and there is none, or something else than these.
        """
        folder = Path(run)
        config, _ = run_folder.load_config(folder)
        place = Placement.of(device, "fp32")
        return cls(folder, place.module(run_folder.load_model(folder)), config, place)

    @property
    def image_size(self) -> int:
        """Side S of the images, pixels."""
        return self.config.model.image_size

    @property
    def latent_dim(self) -> int:
        """Size D of the latents."""
        return self.config.model.latent_dim

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that can be edited.

        Raises:
            RunError: as `directions`.
        """
        return self.directions.names

    @cached_property
    def directions(self) -> Directions:
        """The attribute directions, one row an attribute.

        Raises:
            RunError: the run has none, or they cannot be read.
        """
        try:
            return Directions.load(self.run / DIRECTIONS)
        except DirectionsError as error:
            raise RunError(f"{error}; {run_folder.mend_of(self.run)}") from error

    @cached_property
    def priors(self) -> dict[str, Prior]:
        """What new faces can be drawn from, by name, the default first.

        Raises:
            RunError: the run has none, or it cannot be read.
        """
        try:
            return load_priors(self.run / PRIOR)
        except BundleError as error:
            raise RunError(f"{error}; {run_folder.mend_of(self.run)}") from error

    def read(self, paths: Iterable[str | Path], *, align: bool = False) -> Images:
        """Image files as the model was trained on them: upright, RGB, brought to its frame, (N, S, S, 3).

        Args:
            paths: the files.
            align: find and align faces, as a run that was trained so does anyway.

        Raises:
            TypeError: one path stands where a list of them is expected.
            DataError: a file is no image, damaged, of a size that cannot be used, or shows no face to align.
            FramingError: of `framing`; the run has no frame to align to, or the extra `align` is missing.
        """
        frame = self.config.frame
        aligner = Aligner(frame) if align or self.config.align else None
        read = [pixels.read(Path(path), frame, aligner).image for path in _several("paths", paths)]
        return np.array(read, np.uint8).reshape(len(read), self.image_size, self.image_size, 3)

    def encode(self, images: Images) -> Floats:
        """Posterior means mu, (N, D), of images (N, S, S, 3) uint8 RGB.

        Raises:
            ValueError: they have another type or shape.
        """
        size, images = self.image_size, np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images must be uint8 (N, {size}, {size}, 3), not {images.dtype} {images.shape}; VAE.read brings "
                "files to that"
            )
        return encode(self.network, images, np.arange(len(images)), self._place)[0]

    def decode(self, latents: Floats) -> Images:
        """Images (N, S, S, 3) uint8 RGB of latents (N, D) float32.

        Raises:
            ValueError: they have another type or shape, or are not finite.
        """
        latents = np.ascontiguousarray(latents)  # torch takes no reversed ones
        if latents.dtype != np.float32 or latents.ndim != 2 or latents.shape[1] != self.latent_dim:
            raise ValueError(
                f"latents must be float32 (N, {self.latent_dim}), not {latents.dtype} {latents.shape}; "
                "astype(np.float32) changes the type"
            )
        if not np.isfinite(latents).all():
            raise ValueError("latents must be finite numbers; some are not")
        return decode(self.network.decoder, latents, self._place)

    def edit(
        self,
        images: Images,
        edits: Mapping[str, float] | None = None,
        keep: Iterable[str] = (),
        *,
        having: Sequence[str] = (),
        lacking: Sequence[str] = (),
    ) -> Images:
        """Images with attributes added or taken away, (N, S, S, 3).

        Args:
            images: (N, S, S, 3) uint8 RGB.
            edits: strengths by attribute, in lengths of the mean difference, as protos/dfcvae.proto defines it; a
                negative one takes the attribute away.
            keep: attributes that must stay as they are.
            having: attributes that every face is to have after that, as much as training faces with them on average, or
                more: each is moved as little as it takes.
            lacking: attributes that none is to have, no more than training faces without them on average.

        Raises:
            TypeError: one name stands where a list of them is expected, or `edits` has no strengths.
            ValueError: the images have another type or shape.
            RunError: as `directions`.
            UnknownAttribute: of `engine.errors`; the run has no direction of a name.
            InvalidRequest: of `engine.errors`; a strength is not finite, an attribute is both edited and kept, or
                attributes contradict each other.
        """
        if not isinstance(edits, Mapping | None):
            raise TypeError(f"edits must be strengths by attribute, for example {{'Smiling': 1.5}}, not {edits!r}")
        kept, having, lacking = _several("keep", keep), _several("having", having), _several("lacking", lacking)
        step = self.directions.move(list((edits or {}).items()), kept).step
        conditions = Conditions.of(self.directions, having, lacking, kept)
        return self.decode(conditions.project(self.encode(images) + step))

    def sample(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        distribution: str | None = None,
        *,
        having: Sequence[str] = (),
        lacking: Sequence[str] = (),
    ) -> Images:
        """New faces, (count, S, S, 3): those that a server draws for the same seed.

        Args:
            count: how many, at least 1.
            seed: any integer from 0 on; the same one gives the same faces.
            temperature: factor on the distance from the mean face; below 1 faces are more typical and less varied.
            distribution: what they are drawn from, one of `priors`; None: the first of them.
            having: attributes that every face is to have, as much as training faces with them on average, or more.
            lacking: attributes that none is to have, no more than training faces without them on average.

        Raises:
            TypeError: one name stands where a list of them is expected.
            RunError: as `priors`, and of attributes as `directions`.
            UnknownAttribute: of `engine.errors`; the run has no direction of a name.
            InvalidRequest: of `engine.errors`; an argument is out of its range, or attributes contradict each other.
            ValueError: the run has no such distribution.
        """
        having, lacking = _several("having", having), _several("lacking", lacking)
        name = next(iter(self.priors)) if distribution is None else distribution
        if name not in self.priors:
            raise ValueError(f"distribution must be one of {', '.join(self.priors)}, not {name!r}")
        latents = self.priors[name].draw(count, seed, temperature)
        if having or lacking:
            latents = Conditions.of(self.directions, having, lacking).project(latents)
        return self.decode(latents)


def _several(name: str, values: Iterable[T]) -> list[T]:
    """The values of an argument; a single string or path would be taken for its letters, or not at all."""
    if isinstance(values, (str, Path)):
        raise TypeError(f"{name} takes several, for example [{str(values)!r}], not {str(values)!r} alone")
    return list(values)
