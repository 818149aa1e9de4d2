from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from engine.latents import Gaussian
from trainer.artifacts.prior import Floats, fit_prior, save_prior
from trainer.errors import RunError


def posteriors(count: int, latent_dim: int) -> tuple[Floats, Floats, Floats]:
    """Correlated mu, log_var of a mean variance of 0.25, and the covariance that all have together."""
    random = np.random.default_rng(0)
    root = random.standard_normal((latent_dim, latent_dim)) / np.sqrt(latent_dim)
    mu = 2 + random.standard_normal((count, latent_dim)) @ root.T
    log_var = np.log(random.uniform(0, 0.5, (count, latent_dim)))
    return mu.astype(np.float32), log_var.astype(np.float32), root @ root.T + 0.25 * np.eye(latent_dim)


def covariance_of(mu: Floats, log_var: Floats) -> Floats:
    _, root = fit_prior(mu, log_var)
    return root @ root.T


def test_many_images_give_the_aggregate_posterior() -> None:
    mu, log_var, covariance = posteriors(50_000, 6)
    np.testing.assert_allclose(fit_prior(mu, log_var)[0], 2, atol=0.03)
    np.testing.assert_allclose(covariance_of(mu, log_var), covariance, atol=0.03)


def test_few_images_are_shrunk_to_something_better() -> None:
    mu, log_var, covariance = posteriors(20, 64)
    shrunk = covariance_of(mu, log_var)
    plain = np.cov(mu.T) + 0.25 * np.eye(64)
    assert np.linalg.norm(shrunk - covariance) < 0.8 * np.linalg.norm(plain - covariance)
    assert np.linalg.eigvalsh(shrunk)[0] > 0.2


@pytest.mark.parametrize("count", [2, 3])
def test_hardly_any_images(count: int) -> None:
    mu, log_var, _ = posteriors(count, 5)
    assert np.isfinite(covariance_of(mu, log_var)).all()


def test_one_dimension_that_is_not_used() -> None:
    mu = np.zeros((100, 1), np.float32)
    mean, root = fit_prior(mu, mu)
    np.testing.assert_allclose((mean, root[0]), ([0], [1]), atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_no_numbers(value: float) -> None:
    mu, log_var, _ = posteriors(10, 4)
    broken = mu.copy()
    broken[3, 1] = value
    for pair in ((broken, log_var), (mu, np.where(broken == mu, log_var, np.float32(value)))):
        with pytest.raises(RunError, match="latents of training images that are not finite"):
            fit_prior(*pair)


def test_the_server_draws_from_the_file(tmp_path: Path) -> None:
    mu, log_var, covariance = posteriors(5000, 4)
    save_prior(tmp_path / "prior.safetensors", *fit_prior(mu, log_var), 5000, "ab" * 32)
    drawn = Gaussian.load(tmp_path / "prior.safetensors").draw(20_000, seed=1)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.1)
    with safe_open(tmp_path / "prior.safetensors", "np") as file:
        assert file.metadata() == {"split": "train", "images": "5000", "model_sha256": "ab" * 32}
