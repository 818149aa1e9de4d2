import numpy as np
import pytest

from trainer.evaluation.encoding import kl_per_dimension, posterior_samples, summary

N = 4000


def posteriors(mean: float, std: float, log_var: float) -> tuple[np.ndarray, np.ndarray]:
    """Two dimensions: mu of N(mean, std), and one that is switched off."""
    mu = np.zeros((N, 2), np.float32)
    mu[:, 0] = mean + std * np.random.default_rng(0).standard_normal(N)
    logs = np.zeros((N, 2), np.float32)
    logs[:, 0] = log_var
    return mu, logs


def test_kl_of_known_gaussians() -> None:
    mu, log_var = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, np.log(4.0)]], np.float32)
    assert kl_per_dimension(mu, log_var) == pytest.approx([0.5, 0.5 * (4 - 1 - np.log(4))], rel=1e-6)


def test_an_aggregate_posterior_that_is_the_prior() -> None:
    """Mu of variance 0.75 and posteriors of variance 0.25 make N(0, 1) together."""
    mu, log_var = posteriors(0, np.sqrt(0.75), np.log(0.25))
    values = summary(mu, log_var, posterior_samples(mu, log_var, seed=1))
    assert values["active_units"] == 1
    assert values["latent_dim"] == 2
    assert values["kl_nats"] == pytest.approx(0.5 * (0.75 + 0.25 - 1 - np.log(0.25)), rel=0.05)
    assert values["ks_mean"] < 0.03
    assert sum(values["per_dimension"]["kl_nats"]) == pytest.approx(values["kl_nats"], abs=1e-4)


def test_a_shifted_aggregate_posterior_is_far_from_the_prior() -> None:
    mu, log_var = posteriors(2.0, 0.5, np.log(0.25))
    assert summary(mu, log_var, posterior_samples(mu, log_var, seed=1))["ks_mean"] > 0.25  # over 0.5, and nearly 0


def test_samples_are_seeded() -> None:
    mu, log_var = posteriors(0, 1, 0)
    first, again, other = (posterior_samples(mu, log_var, seed) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
