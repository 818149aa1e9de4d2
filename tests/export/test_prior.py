from pathlib import Path

import numpy as np
import pytest
from tiny_model import LATENT_DIM, latents_of, random_images

from engine.backends import Backend, open_backend
from engine.bundle import Bundle
from engine.sampling import Floats, Gaussian
from export.errors import ParityError
from export.prior import fit_prior, write_prior


def posteriors(count: int, latent_dim: int) -> tuple[Floats, Floats, Floats]:
    """Correlated mu, log_var of a mean variance of 0.25, and the covariance that all have together."""
    random = np.random.default_rng(0)
    root = random.standard_normal((latent_dim, latent_dim)) / np.sqrt(latent_dim)
    mu = 2 + random.standard_normal((count, latent_dim)) @ root.T
    log_var = np.log(random.uniform(0, 0.5, (count, latent_dim)))
    return mu.astype(np.float32), log_var.astype(np.float32), root @ root.T + 0.25 * np.eye(latent_dim)


def covariance_of(prior: Gaussian) -> np.ndarray:
    return prior.factor @ prior.factor.T


def test_many_images_give_the_aggregate_posterior() -> None:
    mu, log_var, covariance = posteriors(50_000, 6)
    prior = fit_prior(mu, log_var)
    np.testing.assert_allclose(prior.mean, 2, atol=0.03)
    np.testing.assert_allclose(covariance_of(prior), covariance, atol=0.03)


def test_few_images_are_shrunk_to_something_better() -> None:
    mu, log_var, covariance = posteriors(20, 64)
    shrunk = covariance_of(fit_prior(mu, log_var))
    plain = np.cov(mu.T) + 0.25 * np.eye(64)
    assert np.linalg.norm(shrunk - covariance) < 0.8 * np.linalg.norm(plain - covariance)
    assert np.linalg.eigvalsh(shrunk)[0] > 0.2


@pytest.mark.parametrize("count", [2, 3])
def test_hardly_any_images(count: int) -> None:
    mu, log_var, _ = posteriors(count, 5)
    assert np.isfinite(fit_prior(mu, log_var).draw(10, seed=0)).all()


def test_one_dimension_that_is_not_used() -> None:
    mu = np.zeros((100, 1), np.float32)
    prior = fit_prior(mu, mu)
    np.testing.assert_allclose((prior.mean, prior.factor[0]), ([0], [1]), atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_no_numbers(value: float) -> None:
    mu, log_var, _ = posteriors(10, 4)
    broken = mu.copy()
    broken[3, 1] = value
    for pair in ((broken, log_var), (mu, np.where(broken == mu, log_var, np.float32(value)))):
        with pytest.raises(ParityError, match="latents of real images that are not finite"):
            fit_prior(*pair)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_an_engine_encodes_every_image_once(tiny_bundle: Path, tmp_path: Path, batch_size: int) -> None:
    images = random_images(33, seed=0)
    engine = open_backend(Bundle.load(tiny_bundle), threads=1)
    small = Small(engine)
    write_prior(small, images, tmp_path / "prior.safetensors", batch_size)
    prior = Gaussian.load(tmp_path / "prior.safetensors")
    assert prior.latent_dim == LATENT_DIM
    np.testing.assert_allclose(prior.mean, latents_of(images).mean(axis=0), rtol=1e-5)
    assert small.batches[-1] <= max(small.batches) == batch_size
    assert sum(small.batches) == 33


class Small:
    """An engine that notes its batches, and encodes bytes as values of order one where variances are concerned."""

    def __init__(self, engine: Backend) -> None:
        self.engine = engine
        self.batches: list[int] = []

    def encode(self, images: np.ndarray) -> tuple[Floats, Floats]:
        self.batches.append(len(images))
        assert images.flags.c_contiguous
        return self.engine.encode(images)

    def decode(self, latents: Floats) -> np.ndarray:
        return self.engine.decode(latents)
