"""The Gaussian that random faces are drawn from: fitted to what the encoder gives for real ones.

A VAE's latents are only about N(0, I). Drawn from the Gaussian of their aggregate posterior, they decode to more
typical faces (Ghosh et al., arXiv 1903.12436, fit densities after training in the same way).

Shapes: N images, D latent_dim.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.covariance import ledoit_wolf

from engine.backends import Backend, Bytes, Floats
from engine.sampling import Gaussian
from export.errors import ParityError


def write_prior(backend: Backend, images: Bytes, target: Path, batch_size: int = 1) -> None:
    """Writes the Gaussian of images as an engine encodes them, for `engine.sampling.Gaussian.load`.

    Args:
        backend: The engine.
        images: uint8 [N, S, S, 3] RGB, real ones.
        target: File to write.
        batch_size: Images per call of the engine.

    Raises:
        ParityError: latents are not finite.
    """
    batches = [np.ascontiguousarray(images[at : at + batch_size]) for at in range(0, len(images), batch_size)]
    mu, log_var = zip(*map(backend.encode, batches), strict=True)
    fit_prior(np.concatenate(mu), np.concatenate(log_var)).save(target)


def fit_prior(mu: Floats, log_var: Floats) -> Gaussian:
    """Fits a Gaussian to the mixture of N posteriors.

    Its covariance is that of mu, plus the mean variance of the posteriors (the trainer's `fitted` samples are of mu
    alone: they lack the latter). Images may be few beside D * (D + 1) / 2 covariances, so that of mu is shrunk towards
    a multiple of I by Ledoit and Wolf's estimate: much with few images, hardly with many.

    Args:
        mu: float32 [N, D].
        log_var: float32 [N, D].

    Returns:
        The Gaussian; its factor is the covariance's symmetric root, which exists even if some dimension is constant.

    Raises:
        ParityError: values are not finite.
    """
    with np.errstate(over="ignore"):
        variance = np.exp(log_var.astype(np.float64)).mean(axis=0)
    if not (np.isfinite(mu).all() and np.isfinite(variance).all()):
        raise ParityError(
            "the encoder gives latents of real images that are not finite; the training has diverged: train again "
            "with a smaller --lr"
        )
    mean = mu.mean(axis=0, dtype=np.float64)
    covariance, _ = ledoit_wolf(mu.astype(np.float64) - mean, assume_centered=True)
    covariance = np.atleast_2d(covariance) + np.diag(variance)
    values, vectors = np.linalg.eigh(covariance)
    factor = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return Gaussian(mean.astype(np.float32), factor.astype(np.float32))
