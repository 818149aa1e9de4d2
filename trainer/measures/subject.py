"""What is judged: a trained run beside a data set, its held-out images encoded once.

Shapes: N test images, M train images, D latent_dim, A attributes, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from engine.errors import BundleError, DirectionsError
from engine.latents import Directions
from engine.sampling import Gaussian
from trainer import checkpoint
from trainer.checkpoint import DIRECTIONS, MODEL, PRIOR, belongs, sha256_of
from trainer.config import TrainConfig
from trainer.dataset import FaceData
from trainer.encode import encode
from trainer.errors import RunError
from trainer.model import VAE
from trainer.placement import Placement

Images = NDArray[np.uint8]
"""(N, S, S, 3) uint8 RGB."""
Floats = NDArray[np.float32]
BATCH_IMAGES = 128


@dataclass(frozen=True)
class Subject:
    """A run and the images that it is judged on.

    Attributes:
        run: the run folder.
        config: what the run computed.
        data: the data set, packed at the model's size.
        model: in evaluation mode, on the device of `place`.
        place: where everything is computed.
        rows: (N,) the rows of `data.images` in the test split.
        train_rows: (M,) those of the train split.
        mu: (N, D) posterior means of the test split.
        log_var: (N, D) their log variances.
        train_mu: (M, D) posterior means of the train split.
        directions: one row an attribute; none at all for data without attributes.
    """

    run: Path
    config: TrainConfig
    data: FaceData
    model: VAE
    place: Placement
    rows: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    mu: Floats
    log_var: Floats
    train_mu: Floats
    directions: Directions

    @classmethod
    def of(cls, run: Path, data: FaceData, place: Placement | None = None) -> Subject:
        """Reads a run and encodes both splits.

        Args:
            run: a finished run folder.
            data: the data set, packed at the model's size.
            place: where to compute; default: the GPU if there is one.

        Raises:
            RunError: the run has no weights, or no directions or prior of them.
        """
        config, _ = checkpoint.load_config(run)
        place = place or Placement.of()
        model = place.module(checkpoint.load_model(run))
        anew = f"make it anew with `python -m trainer directions {run} --data {data.index.root}`"
        try:
            directions = Directions.load(run / DIRECTIONS)
            Gaussian.load(run / PRIOR)
        except (BundleError, DirectionsError) as error:
            raise RunError(f"{error}; {anew}") from error
        for name in (DIRECTIONS, PRIOR):
            if not belongs(run / name, sha256_of(run / MODEL)):
                raise RunError(f"{run / name} is of other weights than {run / MODEL}; {anew}")
        rows, train_rows = data.rows("test"), data.rows("train")
        mu, log_var = encode(model, data.images, rows, place)
        train_mu, _ = encode(model, data.images, train_rows, place)
        return cls(run, config, data, model, place, rows, train_rows, mu, log_var, train_mu, directions)

    @cached_property
    def prior(self) -> Gaussian:
        """The Gaussian that the server will draw new faces from."""
        return Gaussian.load(self.run / PRIOR)

    @cached_property
    def images(self) -> Images:
        """The test split's images (N, S, S, 3), as packed."""
        return self.data.images[self.rows]

    @cached_property
    def labels(self) -> NDArray[np.bool_]:
        """(N, A) which test image has which attribute."""
        return self.data.index.labels[self.rows]

    @cached_property
    def train_labels(self) -> NDArray[np.bool_]:
        """(M, A) which train image has which attribute."""
        return self.data.index.labels[self.train_rows]

    @cached_property
    def val_rows(self) -> NDArray[np.int64]:
        """The rows of `data.images` in the val split: for choices that must not see the test split."""
        return self.data.rows("val")

    @cached_property
    def val_mu(self) -> Floats:
        """Posterior means of the val split, (V, D)."""
        return encode(self.model, self.data.images, self.val_rows, self.place)[0]

    @cached_property
    def val_labels(self) -> NDArray[np.bool_]:
        """(V, A) which val image has which attribute."""
        return self.data.index.labels[self.val_rows]

    @cached_property
    def reconstructions(self) -> Images:
        """The test split's images decoded from their mu (N, S, S, 3)."""
        return self.decode(self.mu)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the A columns of the labels."""
        return self.data.index.attributes

    @torch.no_grad()
    def decode(self, latents: Floats, fast: bool = False) -> Images:
        """Decodes.

        Args:
            latents: (L, D), any number of them.
            fast: computes as in training, in bf16 where the device has units for it, rather than as served, in FP32;
                pixels differ by a level or so.

        Returns:
            (L, S, S, 3).
        """
        size = self.config.model.image_size
        images = np.empty((len(latents), size, size, 3), np.uint8)
        for start in tqdm(range(0, len(latents), BATCH_IMAGES), "decoding", unit="batch", delay=3, leave=False):
            part = torch.from_numpy(latents[start : start + BATCH_IMAGES]).to(self.place.device)
            with self.place.autocast() if fast else torch.no_grad():
                decoded = self.model.decoder(part)
            pixels = decoded.float().permute(0, 2, 3, 1).mul(255).round().to(torch.uint8)
            images[start : start + BATCH_IMAGES] = pixels.cpu().numpy()
        return images
