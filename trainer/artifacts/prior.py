"""The Gaussian that new faces are drawn from: fitted to the latents of the whole train split.

A VAE's latents are only about N(0, I). Drawn from a Gaussian that fits them, they decode to more typical faces (Ghosh
et al., arXiv 1903.12436, fit densities after training in the same way). What is fitted is the aggregate posterior, the
mixture of the posteriors N(mu_i, diag(sigma_i^2)) of all N training images, because its draws are what the decoder was
trained on. By the law of total covariance it has

    mean = mean_i mu_i,        covariance = cov_i(mu_i) + diag(mean_i sigma_i^2).

The run folder keeps it in prior.safetensors, export copies the file, and the server and the measures draw from it with
`engine.latents.Gaussian`.

Shapes: N images, D latent_dim.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from trainer.errors import RunError

Floats = NDArray[np.float32]


def fit_prior(mu: Floats, log_var: Floats) -> tuple[Floats, Floats]:
    """Fits a Gaussian to the mixture of N posteriors.

    cov(mu) has D * (D + 1) / 2 values, for which a small data set may have too few images: it is shrunk towards a
    multiple of I by Ledoit and Wolf's estimate, much with few images, hardly with many.

    Args:
        mu: (N, D) posterior means.
        log_var: (N, D) their log variances.

    Returns:
        The mean (D,), and the symmetric root (D, D) of the covariance, which exists even if some dimension is constant.

    Raises:
        RunError: values are not finite.
    """
    from sklearn.covariance import ledoit_wolf  # noqa: PLC0415  (start-up: --help need not load it)

    with np.errstate(over="ignore"):
        variance = np.exp(log_var.astype(np.float64)).mean(axis=0)
    if not (np.isfinite(mu).all() and np.isfinite(variance).all()):
        raise RunError(
            "the encoder gives latents of training images that are not finite; the training has diverged: train again "
            "with a smaller --lr"
        )
    mean = mu.mean(axis=0, dtype=np.float64)
    covariance, _ = ledoit_wolf(mu.astype(np.float64) - mean, assume_centered=True)
    covariance = np.atleast_2d(covariance) + np.diag(variance)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return mean.astype(np.float32), root.astype(np.float32)


def save_prior(path: Path, mean: Floats, root: Floats, images: int, model_sha256: str) -> None:
    """Writes prior.safetensors, which `engine.latents.Gaussian` reads.

    Tensors `mean` (D,) and `factor` (D, D) float32, covariance = factor @ factor.T; metadata `split`, the images that
    it was fitted to, `images`, their number, and `model_sha256`, the weights whose latents these are.
    """
    metadata = {"split": "train", "images": str(images), "model_sha256": model_sha256}
    save_file({"mean": mean, "factor": np.ascontiguousarray(root)}, path, metadata)
