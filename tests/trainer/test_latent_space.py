import numpy as np
import pytest

from engine.latents import Directions
from trainer.evaluation.latent_space import correlation, kl_per_dimension, pairs, posterior_samples, summary, tsne
from trainer.evaluation.skipped import SkippedError

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


def directions(**vectors: np.ndarray) -> Directions:
    count = len(vectors)
    stacked = np.array(list(vectors.values()), np.float32).reshape(count, -1)
    return Directions(tuple(vectors), stacked, (30,) * count, (30,) * count, "train")


def test_correlations_of_known_vectors_stand_in_blocks() -> None:
    random = np.random.default_rng(0)
    beard, smile = random.standard_normal((2, 400))
    values = correlation(
        directions(
            Goatee=beard, Smiling=smile, Mustache=2 * beard + 1, Mouth_Open=smile * 3, No_Beard=-beard, Flat=0 * smile
        )
    )
    names, matrix = values["attributes"], np.array(values["matrix"])
    assert "Flat" not in names

    def of(first: str, second: str) -> float:
        return float(matrix[names.index(first), names.index(second)])

    assert of("Goatee", "Mustache") == pytest.approx(1, abs=1e-3)
    assert of("Goatee", "No_Beard") == pytest.approx(-1, abs=1e-3)
    assert abs(of("Goatee", "Smiling")) < 0.2
    assert np.allclose(matrix, matrix.T)
    assert abs(names.index("Goatee") - names.index("Mustache")) == 1
    assert abs(names.index("Smiling") - names.index("Mouth_Open")) == 1


def test_one_direction_correlates_with_nothing() -> None:
    with pytest.raises(SkippedError, match="needs two attribute directions, and this run has 1"):
        correlation(directions(Smiling=np.arange(5)))
    empty = Directions((), np.zeros((0, 5), np.float32), (), (), "train")
    with pytest.raises(SkippedError, match="this run has 0"):
        correlation(empty)


def test_tsne_keeps_clusters_apart() -> None:
    random = np.random.default_rng(0)
    mu = random.standard_normal((60, 8)).astype(np.float32)
    mu[30:] += 20
    places = tsne(mu, seed=0)
    inside = max(places[:30].std(0).max(), places[30:].std(0).max())
    assert np.linalg.norm(places[:30].mean(0) - places[30:].mean(0)) > 2 * inside
    assert np.array_equal(places, tsne(mu, seed=0))
    with pytest.raises(SkippedError, match="needs ten test images and two latents, and there are 9 and "):
        tsne(mu[:9], seed=0)
    with pytest.raises(SkippedError, match="there are 60 and 1"):
        tsne(mu[:, :1], seed=0)


def test_pairs_are_of_different_faces() -> None:
    found = pairs(7, wanted=5, seed=0)
    assert found.shape == (3, 2)  # seven faces make three pairs
    assert len(np.unique(found)) == 6
    assert found.max() < 7
