"""The encoding distribution: how far the posteriors, one by one and together, are from N(0, I).

Shapes: N images, D latent_dim.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.evaluation.encoded_run import Floats
from trainer.loss.vae_loss import kl_divergence
from trainer.monitoring.watchdog import ACTIVE_VARIANCE


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
    mean: NDArray[np.float64] = kl.mean(0).numpy()
    return mean


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
