"""The geometry of the latent space: how attribute vectors correlate, t-SNE of mu, and lines between faces.

Shapes: N images, A attributes, D latent_dim.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from engine.latents import Directions
from trainer.evaluation.encoded_run import Floats
from trainer.evaluation.skipped import SkippedError

MAX_MAPPED = 2000
"""Images at most on a t-SNE map: a person can look at no more, and its time grows faster than their number."""


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
