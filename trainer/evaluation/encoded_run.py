"""What is judged: a trained network beside a data set, its held-out images encoded once.

Shapes: N test images, M train images, V val images, D latent_dim, A attributes, S image side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import BundleError, DirectionsError
from engine.latents import Directions, Prior, load_priors
from trainer import run_folder
from trainer.artifacts.directions import directions_of, save_directions
from trainer.artifacts.encode import BATCH_IMAGES, batches, decode
from trainer.artifacts.prior import fit_priors, save_priors
from trainer.config import Kind
from trainer.data import FaceData
from trainer.errors import RunError
from trainer.hardware.device import Placement
from trainer.run_folder import DIRECTIONS, MODEL, PRIOR, belongs, sha256_of

Images = NDArray[np.uint8]  # (N, S, S, 3) uint8 RGB
Floats = NDArray[np.float32]
KIND: Kind = "adjusted"  # of the directions that are computed for networks of other projects


@dataclass(frozen=True)
class Autoencoder:
    """A trained network as functions of arrays, whoever wrote it. They are given `BATCH_IMAGES` at most at a time."""

    # images (B, S, S, 3) uint8 to mu (B, D) and log variances (B, D), float32; None for the log variances of an
    # encoder that gives a point
    encode: Callable[[Images], tuple[Floats, Floats | None]]
    decode: Callable[[Floats], Images]  # latents (B, D) float32 to images (B, S, S, 3) uint8

    @classmethod
    def of(
        cls, encoder: Callable[[Tensor], Sequence[Tensor]], decoder: Callable[[Tensor], Tensor], place: Placement
    ) -> "Autoencoder":
        """Networks in evaluation mode on the device of `place`, in FP32, as served.

        The encoder takes images (B, 3, S, S) float32 in [0, 1] to mu (B, D) and, unless it gives points, log variances,
        the decoder latents (B, D) float32 to images (B, 3, S, S) in [0, 1].
        """

        @torch.no_grad()
        def encode(images: Images) -> tuple[Floats, Floats | None]:
            mu, *log_var = (part.cpu().numpy() for part in encoder(place.images(images)))
            return mu, log_var[0] if log_var else None

        return cls(encode, lambda latents: decode(decoder, latents, place))


@dataclass(frozen=True)
class EncodedRun:
    """A trained network and the images that it is judged on."""

    autoencoder: Autoencoder
    data: FaceData  # packed at the network's size
    place: Placement  # where the measuring networks compute
    mu: Floats  # (N, D) posterior means of the test split
    log_var: Floats | None  # (N, D) their log variances; None where the encoder gives points
    train_mu: Floats  # (M, D) posterior means of the train split
    directions: Directions  # one row an attribute; none at all for data without attributes
    # what new faces are drawn from, by name, the default first; a run's are those that the server draws from
    priors: dict[str, Prior]

    @classmethod
    def of(cls, run: Path, data: FaceData, place: Placement) -> "EncodedRun":
        """Reads a finished run and encodes both splits.

        Raises:
            RunError: the run has no weights, or no directions or prior of them.
        """
        model = place.module(run_folder.load_model(run))
        autoencoder = Autoencoder.of(model.encoder, model.decoder, place)
        mend = run_folder.mend_of(run, data.index.root)
        try:
            directions, priors = Directions.load(run / DIRECTIONS), load_priors(run / PRIOR)
        except (BundleError, DirectionsError) as error:
            raise RunError(f"{error}; {mend}") from error
        for name in (DIRECTIONS, PRIOR):
            if not belongs(run / name, sha256_of(run / MODEL)):
                raise RunError(f"{run / name} is of other weights than {run / MODEL}; {mend}")
        train_mu, _ = _encode(autoencoder, data, "train")
        return cls(autoencoder, data, place, *_encode(autoencoder, data, "test"), train_mu, directions, priors)

    @classmethod
    def of_autoencoder(cls, autoencoder: Autoencoder, data: FaceData, folder: Path, place: Placement) -> "EncodedRun":
        """Encodes both splits, and computes what a run has in its folder: a prior, and directions of `KIND`.

        Both are kept in `folder`, which exists.
        """
        train_mu, train_log_var = _encode(autoencoder, data, "train")
        point = np.full_like(train_mu, -np.inf)  # of no width
        priors = fit_priors(train_mu, point if train_log_var is None else train_log_var)
        save_priors(folder / PRIOR, priors, len(train_mu))
        found = directions_of(train_mu, data.index.labels[data.rows("train")], data.index.attributes, KIND)
        path, latent_dim = folder / DIRECTIONS, train_mu.shape[1]
        run_folder.write_atomically(path, lambda file: save_directions(file, found, latent_dim, "train"))
        encoded = _encode(autoencoder, data, "test")
        return cls(autoencoder, data, place, *encoded, train_mu, Directions.load(path), load_priors(folder / PRIOR))

    @cached_property
    def images(self) -> Images:
        """The test split's images (N, S, S, 3), as packed."""
        return self.data.images[self.data.rows("test")]

    @cached_property
    def labels(self) -> NDArray[np.bool_]:
        """(N, A) which test image has which attribute."""
        return self.data.index.labels[self.data.rows("test")]

    @cached_property
    def train_labels(self) -> NDArray[np.bool_]:
        """(M, A) which train image has which attribute."""
        return self.data.index.labels[self.data.rows("train")]

    @cached_property
    def val_mu(self) -> Floats:
        """Posterior means of the val split, (V, D): for choices that must not see the test split."""
        return _encode(self.autoencoder, self.data, "val")[0]

    @cached_property
    def reconstructions(self) -> Images:
        """The test split's images decoded from their mu (N, S, S, 3)."""
        return self.decode(self.mu)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the A columns of the labels."""
        return self.data.index.attributes

    def decode(self, latents: Floats) -> Images:
        """Decodes any number of latents (L, D) to images (L, S, S, 3)."""
        images = np.empty((len(latents), *self.data.images.shape[1:]), np.uint8)
        for some in batches(len(latents), "decoding", BATCH_IMAGES):
            images[some] = self.autoencoder.decode(latents[some])
        return images

    def edit(self, latents: Floats, target: str | Floats, strength: float, keep: Sequence[str] = ()) -> Images:
        """Latents (L, D) edited as the server edits them, and decoded: (L, S, S, 3).

        The target is an attribute, or a direction (D,) of another kind than the run's own; `keep` are attributes that
        must stay.
        """
        return self.decode(latents + self.directions.move([(target, strength)], keep).step)


def _encode(autoencoder: Autoencoder, data: FaceData, split: str) -> tuple[Floats, Floats | None]:
    """Posteriors of a split's R images: mu (R, D), and log variances (R, D) where there are."""
    rows = data.rows(split)
    encoded = [autoencoder.encode(data.images[rows[some]]) for some in batches(len(rows), "encoding", BATCH_IMAGES)]
    if not encoded:
        return np.empty((0, 0), np.float32), None
    log_vars = [log_var for _, log_var in encoded if log_var is not None]
    return np.concatenate([mu for mu, _ in encoded]), np.concatenate(log_vars) if log_vars else None
