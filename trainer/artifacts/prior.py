"""What new faces are drawn from: a Gaussian and a mixture of some, fitted to the latents of the whole train split.

A VAE's latents are only about N(0, I), also where each by itself has been standardised. Drawn from a density that fits
them, they decode to more typical faces (Ghosh et al., arXiv 1903.12436, fit the same two after training). What is
fitted is the aggregate posterior, the mixture of the posteriors N(mu_i, diag(sigma_i^2)) of all N training images,
because its draws are what the decoder was trained on. By the law of total covariance it has

    mean = mean_i mu_i,        covariance = cov_i(mu_i) + diag(mean_i sigma_i^2).

The run folder keeps both in prior.safetensors, export copies the file, and the server and the measures draw from it
with `engine.latents.load_priors`.

Shapes: N images, D latent_dim, K components of the mixture.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from trainer.errors import RunError

Floats = NDArray[np.float32]
Tensors = dict[str, NDArray[Any]]

MAX_COMPONENTS = 10
STRENGTH = 300
"""As many images' worth the covariance within clusters counts in each component's, where few images say little."""
ITERATIONS = 10
"""Of expectation and maximisation; later ones hardly change how likely held-out latents are."""
HELD_OUT = 20
"""Of each so many images one decides whether the mixture fits better than the Gaussian."""


def fit_priors(mu: Floats, log_var: Floats) -> Tensors:
    """Fits a Gaussian to N posteriors together, and a mixture of Gaussians where that is likelier on held-out ones.

    Their means and log variances are (N, D) each.

    Returns:
        `mean` (D,) and `factor` (D, D), the symmetric root of the covariance, float32; of a mixture `weights` (K,)
        float64, `means` (K, D) and `factors` (K, D, D), lower triangular, float32.

    Raises:
        RunError: values are not finite.
    """
    variance = _variance(mu, log_var)
    mean, covariance = fit_gaussian(mu.astype(np.float64), variance.mean(axis=0))
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    gaussian = {"mean": mean.astype(np.float32), "factor": root.astype(np.float32)}
    return gaussian | fit_mixture(mu + np.sqrt(variance) * np.random.default_rng(0).standard_normal(mu.shape))


def moments(mu: Floats, log_var: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each latent over N posteriors (N, D) together, (D,) each.

    Raises:
        RunError: values are not finite.
    """
    variance = mu.var(axis=0, dtype=np.float64) + _variance(mu, log_var).mean(axis=0)
    return mu.mean(axis=0, dtype=np.float64), np.sqrt(variance)


def _variance(mu: Floats, log_var: Floats) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        variance: NDArray[np.float64] = np.exp(log_var.astype(np.float64))
    if not (np.isfinite(mu).all() and np.isfinite(variance.mean(axis=0)).all()):
        raise RunError(
            "the encoder gives latents of training images that are not finite; the training has diverged: train again "
            "with a smaller --lr"
        )
    return variance


def fit_gaussian(mu: NDArray[np.float64], variance: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean (D,) and covariance (D, D) of the posteriors with means (N, D) and mean variances (D,).

    cov(mu) has D * (D + 1) / 2 values, for which a small data set may have too few images: it is shrunk towards a
    multiple of I by Ledoit and Wolf's estimate, much with few images, hardly with many.
    """
    from sklearn.covariance import ledoit_wolf  # noqa: PLC0415  (start-up: --help need not load it)

    mean = mu.mean(axis=0)
    covariance, _ = ledoit_wolf(mu - mean, assume_centered=True)
    return mean, np.atleast_2d(covariance) + np.diag(variance)


def fit_mixture(latents: NDArray[np.float64]) -> Tensors:
    """A mixture of Gaussians of latents (N, D), or nothing where a single one is likelier on held-out ones."""
    from sklearn.cluster import KMeans  # noqa: PLC0415
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from sklearn.mixture import BayesianGaussianMixture  # noqa: PLC0415

    held = np.arange(len(latents)) % HELD_OUT == 0
    seen, held_out, latent_dim = latents[~held], latents[held], latents.shape[1]
    components = min(MAX_COMPONENTS, len(seen) // latent_dim)
    if components < 2:
        return {}
    mean = seen.mean(axis=0)
    try:
        root = np.linalg.cholesky(np.atleast_2d(np.cov(seen.T)))
        white = np.linalg.solve(root, (seen - mean).T).T  # where no dimension decides alone what lies close together
        clusters = KMeans(components, n_init=1, random_state=0).fit(white)
        within = np.atleast_2d(np.cov((white - clusters.cluster_centers_[clusters.labels_]).T))
        np.linalg.cholesky(within)
    except np.linalg.LinAlgError:  # an encoder without noise, of which some dimension follows from others; few images
        return {}
    strength = max(STRENGTH, latent_dim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is stopped early on purpose
        fitted = BayesianGaussianMixture(
            n_components=components,
            weight_concentration_prior_type="dirichlet_distribution",
            degrees_of_freedom_prior=strength,
            covariance_prior=strength * within,
            max_iter=ITERATIONS,
            random_state=0,
        ).fit(white)
    weights = fitted.weights_
    means = (mean + fitted.means_ @ root.T).astype(np.float32)
    factors = (root @ np.linalg.cholesky(fitted.covariances_)).astype(np.float32)
    alone = np.ones(1), mean[None], root[None]
    better = _likelihood(held_out, weights, means, factors) > _likelihood(held_out, *alone)
    return {"weights": weights, "means": means, "factors": factors} if better else {}


def _likelihood(
    latents: NDArray[np.float64], weights: NDArray[Any], means: NDArray[Any], factors: NDArray[Any]
) -> float:
    """Mean log-likelihood of latents under a mixture."""
    from scipy.special import logsumexp  # noqa: PLC0415
    from scipy.stats import Covariance, multivariate_normal  # noqa: PLC0415

    terms = [
        np.log(weight) + multivariate_normal(mean, Covariance.from_cholesky(factor)).logpdf(latents)
        for weight, mean, factor in zip(weights, means, factors, strict=True)
    ]
    return float(logsumexp(terms, axis=0).mean())


def save_priors(path: Path, priors: Tensors, images: int, model_sha256: str = "") -> None:
    """Writes prior.safetensors, which `engine.latents.load_priors` reads.

    What `fit_priors` gives; metadata `split`, the images that it was fitted to, `images`, their number, and
    `model_sha256`, the weights whose latents these are.
    """
    metadata = {"split": "train", "images": str(images), "model_sha256": model_sha256}
    save_file({name: np.ascontiguousarray(values) for name, values in priors.items()}, path, metadata)
