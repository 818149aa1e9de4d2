from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import save_prior
from safetensors.numpy import save_file

from engine.arrays import Floats
from engine.errors import BundleError, InvalidRequest
from engine.latents import Gaussian, Mixture, Prior, linear, load_priors, spherical

Between = Callable[[Floats, Floats, int], Floats]

PINNED = [[0.252257288, 0.0617894381, -0.24763447], [0.785954297, 0.115192264, -0.801162481]]
"""Two draws from N(0, I) with seed 2026, on x86-64 with NumPy 2.4."""

PINNED_MIXTURE = [[30.2522564, 30.0617886, 29.7523651], [30.7859535, 30.1151924, 29.1988373]]
"""Two draws from a mixture of four, the means at 0, 10, 20 and 30, as the above."""


def floats(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gaussian(latent_dim: int = 8) -> Gaussian:
    return Gaussian(floats(latent_dim, seed=3), floats(latent_dim, latent_dim, seed=4))


# Between two latents


@pytest.mark.parametrize("between", [linear, spherical])
def test_ends_are_exact_and_pairs_follow_one_another(between: Between) -> None:
    start, end = floats(3, 16), 7 * floats(3, 16, seed=1)
    points = between(start, end, 5)
    assert points.dtype == np.float32
    assert points.shape == (15, 16)
    np.testing.assert_array_equal(points[::5], start)
    np.testing.assert_array_equal(points[4::5], end)
    for pair in range(3):
        one = slice(pair, pair + 1)
        np.testing.assert_array_equal(points[5 * pair : 5 * pair + 5], between(start[one], end[one], 5))
    np.testing.assert_array_equal(between(start, end, 2)[::2], start)


def test_linear_is_evenly_spaced() -> None:
    start, end = floats(2, 8), floats(2, 8, seed=1)
    points = linear(start, end, 5).reshape(2, 5, 8)
    np.testing.assert_allclose(points[:, 1], 0.75 * start + 0.25 * end, atol=1e-6)
    np.testing.assert_allclose(points[:, 2], (start + end) / 2, atol=1e-6)


def test_spherical_turns_evenly_and_lengthens_linearly() -> None:
    start = np.array([[2, 0, 0]], np.float32)
    end = np.array([[0, 4, 0]], np.float32)
    points = spherical(start, end, 4)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), [2, 8 / 3, 10 / 3, 4], rtol=1e-6)
    np.testing.assert_allclose(np.degrees(np.arctan2(points[:, 1], points[:, 0])), [0, 30, 60, 90], atol=1e-4)
    assert not points[:, 2].any()


def test_spherical_keeps_the_length_that_the_line_loses() -> None:
    start, end = floats(1, 128), floats(1, 128, seed=1)
    length = np.linalg.norm(start)
    middle = np.linalg.norm(spherical(start, end, 3)[1])
    np.testing.assert_allclose(middle, (length + np.linalg.norm(end)) / 2, rtol=1e-6)
    assert np.linalg.norm(linear(start, end, 3)[1]) < 0.8 * length


def test_an_arc_around_a_centre_is_the_arc_that_was_moved_there() -> None:
    start, end, centre = floats(3, 16), floats(3, 16, seed=1), floats(16, seed=2)
    moved = spherical(start + centre, end + centre, 5, centre)
    np.testing.assert_allclose(moved, spherical(start, end, 5) + centre, atol=1e-5)
    np.testing.assert_array_equal(moved[::5], start + centre)
    with pytest.raises(InvalidRequest, match="pair 0: its two latents are opposite"):
        spherical(centre[None] - 1, centre[None] + 1, 3, centre)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 1e-5])
def test_nearly_parallel_latents_lie_on_a_line(angle: float) -> None:
    start = np.array([[3, 0]], np.float32)
    end = np.array([[6 * np.cos(angle), 6 * np.sin(angle)]], np.float32)
    np.testing.assert_allclose(spherical(start, end, 7), linear(start, end, 7), atol=1e-5)


def test_zero_takes_the_direction_of_its_partner() -> None:
    zero, other = np.zeros((1, 4), np.float32), floats(1, 4)
    np.testing.assert_allclose(spherical(zero, other, 5), linear(zero, other, 5), atol=1e-6)
    np.testing.assert_allclose(spherical(other, zero, 5), linear(other, zero, 5), atol=1e-6)
    np.testing.assert_array_equal(spherical(zero, zero, 3), np.zeros((3, 4)))


def test_opposite_latents_have_no_arc() -> None:
    start = floats(3, 8)
    end = np.stack([floats(8, seed=1), -2.5 * start[1], floats(8, seed=2)])
    with pytest.raises(InvalidRequest, match="pair 1: its two latents are opposite"):
        spherical(start, end, 3)
    assert np.isfinite(linear(start, end, 3)).all()


@pytest.mark.parametrize("size", [3e38, 1e-40])
@pytest.mark.parametrize("between", [linear, spherical])
def test_latents_of_any_size(between: Between, size: float) -> None:
    start, end = np.array([[size, 0]], np.float32), np.array([[0, -size]], np.float32)
    points = between(start, end, 9)
    assert np.isfinite(points).all()
    assert points[4, 0] == pytest.approx(-points[4, 1], rel=1e-3)


# From a Gaussian


@pytest.mark.parametrize("latent_dim", [1, 8, 128])
def test_the_first_of_many_are_the_few(latent_dim: int) -> None:
    source = gaussian(latent_dim)
    many = source.draw(100, seed=7)
    assert many.shape == (100, latent_dim)
    assert many.dtype == np.float32
    for count in (1, 2, 33):
        np.testing.assert_array_equal(source.draw(count, seed=7), many[:count])
    assert not np.array_equal(source.draw(100, seed=8), many)


def test_the_stream_is_pinned() -> None:
    drawn = Gaussian.standard(3).draw(2, seed=2026)
    np.testing.assert_array_equal(drawn, np.array(PINNED, np.float32))
    assert Gaussian.standard(2).draw(1, seed=2**64 - 1).shape == (1, 2)


def column_by_column(source: Gaussian, count: int, seed: int, temperature: float) -> Floats:
    """A draw as it was first written down: one sum for each value, from the factor's first column to its last."""
    noise = np.random.Generator(np.random.Philox(seed)).standard_normal((count, source.latent_dim))
    drawn = np.zeros_like(noise)
    for column, root in zip(noise.T, source.factor.T.astype(np.float64), strict=True):
        drawn += column[:, None] * root
    return (source.mean + temperature * drawn).astype(np.float32)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("form", ["dense", "triangular", "diagonal", "sparse", "zero"])
def test_draws_are_the_same_to_the_last_bit_however_they_are_computed(form: str, count: int) -> None:
    dense = floats(33, 33, seed=5)
    forms = {
        "dense": dense,
        "triangular": np.tril(dense),
        "diagonal": np.diag(np.diag(dense)),
        "sparse": np.where(floats(33, 33, seed=6) > 1, dense, np.float32(0)),
        "zero": np.zeros_like(dense),
    }
    source = Gaussian(floats(33, seed=7), forms[form])
    drawn, expected = source.draw(count, 11, 0.7), column_by_column(source, count, 11, 0.7)
    np.testing.assert_array_equal(drawn.view(np.uint32), expected.view(np.uint32))


def test_draws_have_the_mean_and_the_covariance() -> None:
    source = gaussian(3)
    drawn = source.draw(200_000, seed=1).astype(np.float64)
    covariance = source.factor @ source.factor.T
    np.testing.assert_allclose(drawn.mean(axis=0), source.mean, atol=0.02)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.02 * np.abs(covariance).max())


def test_temperature_scales_the_distance_to_the_mean() -> None:
    source = gaussian()
    np.testing.assert_array_equal(source.draw(3, 0, 0.0), np.tile(source.mean, (3, 1)))
    full, half = source.draw(3, 0, 1.0) - source.mean, source.draw(3, 0, 0.5) - source.mean
    np.testing.assert_allclose(half, full / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "seed", "temperature", "message"),
    [
        (0, 0, 1.0, "count must be at least 1, not 0"),
        (1, -1, 1.0, "seed must be at least 0, not -1"),
        (1, 0, -0.5, "temperature must be at least 0 and finite, not -0.5"),
        (1, 0, float("nan"), "temperature must be at least 0 and finite, not nan"),
        (1, 0, float("inf"), "temperature must be at least 0 and finite, not inf"),
        (1, 0, 3e38, r"temperature 3e\+38 moves the latents out of float32's range"),
        (1, 0, 1e300, r"temperature 1e\+300 moves the latents out of float32's range"),
    ],
)
def test_bad_draws_are_refused(count: int, seed: int, temperature: float, message: str) -> None:
    wide = Gaussian(np.zeros(4, np.float32), 100 * np.eye(4, dtype=np.float32))
    with pytest.raises(InvalidRequest, match=message):
        wide.draw(count, seed, temperature)


def mixture(latent_dim: int = 8) -> Mixture:
    parts = [Gaussian(floats(latent_dim, seed=k), floats(latent_dim, latent_dim, seed=10 + k)) for k in range(3)]
    return Mixture(np.array([0.5, 0.1, 0.4]), tuple(parts))


def test_a_mixture_draws_from_its_components_by_weight() -> None:
    parts = tuple(Gaussian(np.full(2, 100 * k, np.float32), np.eye(2, dtype=np.float32)) for k in range(3))
    drawn = Mixture(np.array([1.0, 0.5, 2.5]), parts).draw(40_000, seed=1)
    nearest = (drawn[:, 0] / 100).round()
    np.testing.assert_allclose([(nearest == k).mean() for k in range(3)], [0.25, 0.125, 0.625], atol=0.01)
    for k in range(3):
        np.testing.assert_allclose(np.cov(drawn[nearest == k].T), np.eye(2), atol=0.06)


@pytest.mark.parametrize("latent_dim", [1, 8, 128])
def test_the_first_of_many_of_a_mixture_are_the_few(latent_dim: int) -> None:
    source = mixture(latent_dim)
    many = source.draw(300, seed=7)
    for count in (1, 2, 33, 129):
        np.testing.assert_array_equal(source.draw(count, seed=7), many[:count])
    assert not np.array_equal(source.draw(300, seed=8), many)


def test_each_draw_of_a_mixture_is_that_of_a_component_for_the_same_seed() -> None:
    source = mixture()
    drawn, of_each = source.draw(50, 3), np.stack([one.draw(50, 3) for one in source.components])
    assert np.abs(of_each - drawn).max(axis=2).min(axis=0).max() < 1e-6


def test_the_stream_of_a_mixture_is_pinned() -> None:
    parts = tuple(Gaussian(np.full(3, 10 * k, np.float32), np.eye(3, dtype=np.float32)) for k in range(4))
    drawn = Mixture(np.ones(4), parts).draw(2, seed=2026)
    np.testing.assert_array_equal(drawn, np.array(PINNED_MIXTURE, np.float32))


def test_a_mixture_without_temperature_is_its_mean() -> None:
    parts = (
        Gaussian(np.zeros(2, np.float32), np.eye(2, dtype=np.float32)),
        Gaussian(np.full(2, 4, np.float32), np.eye(2, dtype=np.float32)),
    )
    source = Mixture(np.array([3.0, 1.0]), parts)
    np.testing.assert_array_equal(source.draw(3, 0, 0.0), np.ones((3, 2)))
    full, half = source.draw(3, 0) - 1, source.draw(3, 0, 0.5) - 1
    np.testing.assert_allclose(half, full / 2, atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0, 1.0], [1.0, np.nan, 1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(BundleError, match=r"of 3 Gaussians needs as many weights|finite numbers above 0"):
        Mixture(np.array(weights), mixture().components)


def test_priors_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    save_prior(path, gaussian())
    assert list(load_priors(path)) == ["fitted"]
    save_prior(path, gaussian(), mixture())
    loaded = load_priors(path)
    assert list(loaded) == ["mixture", "fitted"]
    sources: dict[str, Prior] = {"mixture": mixture(), "fitted": gaussian()}
    for name, source in sources.items():
        np.testing.assert_array_equal(loaded[name].draw(5, 2), source.draw(5, 2))
        assert loaded[name].latent_dim == 8


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    with pytest.raises(BundleError, match=r"prior\.safetensors does not exist"):
        load_priors(path)
    save_prior(path, gaussian())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BundleError, match=r"prior\.safetensors can't be read as a prior"):
        load_priors(path)
    square = floats(3, 3)
    good: dict[str, Any] = {"mean": floats(3), "factor": floats(3, 3)}
    mixed: dict[str, Any] = {"weights": np.ones(2), "means": floats(2, 3), "factors": floats(2, 3, 3)}
    for tensors, message in (
        ({"mean": floats(3)}, "is not a prior: it lacks 'factor'"),
        ({"mean": floats(3), "factor": floats(3, 4)}, r"factor of a Gaussian must be float32 \[3, 3\]"),
        ({**good, "weights": np.ones(2)}, "lacks 'means'"),
        ({**good, **mixed, "weights": np.ones(3)}, "a mixture of 2 Gaussians needs as many weights"),
        ({**good, **mixed, "means": floats(2, 2), "factors": floats(2, 2, 2)}, "has 2 dimensions, its Gaussian 3"),
        ({**good, **mixed, "factors": square}, "must be float32"),
    ):
        save_file(tensors, path)
        with pytest.raises(BundleError, match=r"prior\.safetensors.*" + message):
            load_priors(path)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(BundleError, match="mean of a Gaussian has values that are not finite"):
        Gaussian(np.full(2, np.nan, np.float32), np.eye(2, dtype=np.float32))
