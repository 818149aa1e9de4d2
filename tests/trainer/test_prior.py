from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from engine.latents import FITTED, MIXTURE, load_priors
from trainer.artifacts.prior import Floats, fit_priors, save_priors
from trainer.errors import RunError


def posteriors(count: int, latent_dim: int) -> tuple[Floats, Floats, Floats]:
    """Correlated mu, log_var of a mean variance of 0.25, and the covariance that all have together."""
    random = np.random.default_rng(0)
    root = random.standard_normal((latent_dim, latent_dim)) / np.sqrt(latent_dim)
    mu = 2 + random.standard_normal((count, latent_dim)) @ root.T
    log_var = np.log(random.uniform(0, 0.5, (count, latent_dim)))
    return mu.astype(np.float32), log_var.astype(np.float32), root @ root.T + 0.25 * np.eye(latent_dim)


def covariance_of(mu: Floats, log_var: Floats) -> Floats:
    root = fit_priors(mu, log_var)["factor"]
    covariance: Floats = root @ root.T
    return covariance


def test_many_images_give_the_aggregate_posterior() -> None:
    mu, log_var, covariance = posteriors(50_000, 6)
    np.testing.assert_allclose(fit_priors(mu, log_var)["mean"], 2, atol=0.03)
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
    assert set(fit_priors(mu[:, :1], log_var[:, :1])) == {"mean", "factor"}


def test_one_dimension_that_is_not_used() -> None:
    mu = np.zeros((100, 1), np.float32)
    priors = fit_priors(mu, mu)
    np.testing.assert_allclose((priors["mean"], priors["factor"][0]), ([0], [1]), atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_no_numbers(value: float) -> None:
    mu, log_var, _ = posteriors(10, 4)
    broken = mu.copy()
    broken[3, 1] = value
    for pair in ((broken, log_var), (mu, np.where(broken == mu, log_var, np.float32(value)))):
        with pytest.raises(RunError, match="latents of training images that are not finite"):
            fit_priors(*pair)


def test_latents_of_several_kinds_are_fitted_by_a_mixture(tmp_path: Path) -> None:
    """Faces of two kinds, a quarter and three quarters, which lie apart along one axis: no Gaussian has two peaks."""
    mu, log_var, _ = posteriors(6000, 4)
    mu[:1500, 0] += 12
    priors = fit_priors(mu, log_var)
    save_priors(tmp_path / "prior.safetensors", priors, 6000, "ab" * 32)
    drawn = {name: prior.draw(20_000, seed=1) for name, prior in load_priors(tmp_path / "prior.safetensors").items()}
    assert list(drawn) == [MIXTURE, FITTED]
    real = mu + np.exp(log_var / 2) * np.random.default_rng(1).standard_normal(mu.shape)
    between = {name: (abs(latents[:, 0] - 8) < 1).mean() for name, latents in drawn.items()}
    expected = (abs(real[:, 0] - 8) < 1).mean()
    assert between[MIXTURE] == pytest.approx(expected, abs=0.01)
    assert between[FITTED] > expected + 0.03
    assert (drawn[MIXTURE][:, 0] > 8).mean() == pytest.approx(0.25, abs=0.02)
    for latents in drawn.values():
        np.testing.assert_allclose(latents.mean(axis=0), real.mean(axis=0), atol=0.2)
        np.testing.assert_allclose(np.cov(latents.T), np.cov(real.T), rtol=0.1, atol=0.3)
    with safe_open(tmp_path / "prior.safetensors", "np") as file:
        assert file.metadata() == {"split": "train", "images": "6000", "model_sha256": "ab" * 32}


def test_points_that_leave_a_dimension_out_have_a_gaussian_only() -> None:
    mu, _, _ = posteriors(200, 6)
    mu[:, 2] = 0
    assert set(fit_priors(mu, np.full_like(mu, -np.inf))) == {"mean", "factor"}


@pytest.mark.parametrize("count", [30, 5000])
def test_latents_of_one_kind_are_left_to_the_gaussian(count: int) -> None:
    mu, log_var, _ = posteriors(count, 6)
    assert set(fit_priors(mu, np.full_like(log_var, -2))) == {"mean", "factor"}
