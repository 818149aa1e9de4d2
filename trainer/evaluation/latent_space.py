"""The latent space: how far posteriors are from N(0, I), how attribute vectors correlate, and a map of the images.

Shapes: N images, A attributes, D latent_dim.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from engine.latents import Directions
from trainer.evaluation.encoded_run import Floats
from trainer.evaluation.skipped import SkippedError
from trainer.loss.vae_loss import kl_divergence
from trainer.monitoring.watchdog import ACTIVE_VARIANCE

MAX_MAPPED = 2000
"""Images at most on a t-SNE map: a person can look at no more, and its time grows faster than their number."""


def posterior_samples(mu: Floats, log_var: Floats | None, seed: int) -> Floats:
    """One draw of q(z|x) for each image, (N, D): together, draws of the aggregate posterior.

    Without log variances it is mu itself.
    """
    if log_var is None:
        return mu
    noise = np.random.default_rng(seed).standard_normal(mu.shape, np.float32)
    drawn: Floats = mu + np.exp(0.5 * log_var) * noise
    return drawn


def kl_per_dimension(mu: Floats, log_var: Floats) -> NDArray[np.float64]:
    """KL(q(z|x) || N(0, I)) of each dimension, averaged over images, in nats, (D,)."""
    kl = kl_divergence(torch.from_numpy(mu).double(), torch.from_numpy(log_var).double())
    return kl.mean(0).numpy()


def summary(mu: Floats, log_var: Floats | None, samples: Floats) -> dict[str, Any]:
    """The encoding in numbers: of means, log variances (without them there is no KL) and `posterior_samples`, (N, D).

    Returns:
        `images`; `latent_dim`; `kl_nats` an image, summed over dimensions; `active_units`; `ks_mean`: Kolmogorov and
        Smirnov's distance of z from N(0, 1), averaged over dimensions; and `per_dimension`: `kl_nats`, D numbers.
    """
    kl = None if log_var is None else kl_per_dimension(mu, log_var)
    from scipy.stats import kstest  # noqa: PLC0415  (start-up: seconds)

    distances = [kstest(column, "norm").statistic for column in samples.astype(np.float64).T]
    return {
        "images": len(mu),
        "latent_dim": mu.shape[1],
        "kl_nats": None if kl is None else float(kl.sum()),
        "active_units": int((mu.var(0) > ACTIVE_VARIANCE).sum()),
        "ks_mean": float(np.mean(distances)),
        "per_dimension": {"kl_nats": None if kl is None else kl.round(5).tolist()},
    }


def correlation(directions: Directions) -> dict[str, Any]:
    """Pearson's correlation of attribute vectors, over their D values (paper, section 4.3).

    Returns:
        `attributes`, ordered so that those that correlate stand together (average linkage, optimal leaves), and
        `matrix`, A lists of A numbers in that order. A direction whose values are all equal correlates with nothing
        and is left out.

    Raises:
        SkippedError: there are fewer than two directions.
    """
    varied = np.ptp(directions.vectors, axis=1) > 0
    if varied.sum() < 2:
        raise SkippedError(
            f"needs two attribute directions, and this run has {varied.sum()}; train on data with attributes, "
            "20 images on either side of each"
        )
    matrix = np.corrcoef(directions.vectors[varied].astype(np.float64))
    distance = squareform(np.clip(1 - matrix, 0, 2), checks=False)
    order = leaves_list(linkage(distance, "average", optimal_ordering=True))  # rows that correlate are neighbours
    return {
        "attributes": [directions.names[index] for index in np.flatnonzero(varied)[order]],
        "matrix": matrix[np.ix_(order, order)].round(4).tolist(),
    }


def tsne(mu: Floats, seed: int) -> NDArray[np.float32]:
    """Places of images on a plane such that neighbours in the latent space stay neighbours (paper, section 4.3).

    Barnes and Hut's approximation of t-SNE (van der Maaten, 2014): mu (N, D) to (min(N, `MAX_MAPPED`), 2).

    Raises:
        SkippedError: there are too few images for neighbourhoods, or the latent space is a line.
    """
    mu = mu[:MAX_MAPPED]
    if len(mu) < 10 or mu.shape[1] < 2:
        raise SkippedError(f"needs ten test images and two latents, and there are {len(mu)} and {mu.shape[1]}")
    perplexity = min(30.0, (len(mu) - 1) / 3)
    from sklearn.manifold import TSNE  # noqa: PLC0415  (start-up: seconds)

    places: NDArray[np.float32] = TSNE(perplexity=perplexity, random_state=seed).fit_transform(mu)
    return places


def pairs(count: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """The indices of both ends of P pairs of some of `count` faces, each in one at most: (P, 2), P <= count / 2."""
    return np.random.default_rng(seed).permutation(count)[: 2 * min(wanted, count // 2)].reshape(-1, 2)
