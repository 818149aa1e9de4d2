"""Directions on latents whose make is known."""

import logging
from pathlib import Path

import numpy as np
import pytest

from engine.latents import Directions
from trainer.artifacts.directions import (
    KINDS,
    adjusted_differences,
    directions_of,
    load_directions,
    mean_differences,
    save_directions,
    svm_normals,
)
from trainer.config import Kind

D = 6
SMILE, GLASSES = np.eye(D, dtype=np.float32)[:2]


@pytest.fixture
def world() -> tuple[np.ndarray, np.ndarray]:
    """mu (4000, 6) and labels (4000, 3): glasses come with age more often than not, and age moves a third dimension."""
    random = np.random.default_rng(0)
    age = random.random(4000) < 0.5
    glasses = random.random(4000) < np.where(age, 0.7, 0.3)
    smile = random.random(4000) < 0.4
    mu = 0.5 * random.standard_normal((4000, D)).astype(np.float32)
    mu += (
        2 * smile[:, None] * SMILE + 1 * glasses[:, None] * GLASSES + 3 * age[:, None] * np.eye(D, dtype=np.float32)[2]
    )
    return mu, np.stack([smile, glasses, age], axis=1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_mean_differences_are_differences_of_means(world: tuple[np.ndarray, np.ndarray]) -> None:
    mu, labels = world
    for vector, has in zip(mean_differences(mu, labels), labels.T, strict=True):
        assert np.allclose(vector, mu[has].mean(0, dtype=float) - mu[~has].mean(0, dtype=float), atol=1e-5)


def test_an_adjusted_difference_leaves_out_what_another_attribute_brings_along(
    world: tuple[np.ndarray, np.ndarray],
) -> None:
    means, adjusted = mean_differences(*world), adjusted_differences(*world)
    assert cosine(means[1], GLASSES) < 0.7  # glasses carry age
    assert cosine(adjusted[1], GLASSES) > cosine(means[1], GLASSES) + 0.1
    assert cosine(adjusted[0], SMILE) > 0.99
    assert np.allclose(np.linalg.norm(adjusted, axis=1), np.linalg.norm(means, axis=1))


def test_an_attribute_that_is_listed_twice_keeps_its_direction(world: tuple[np.ndarray, np.ndarray]) -> None:
    mu, labels = world
    twice = adjusted_differences(mu, labels[:, [0, 1, 0]])
    assert cosine(twice[0], SMILE) > 0.99
    assert np.allclose(twice[0], twice[2])


def test_an_svm_normal_ignores_what_comes_along_and_has_the_length_of_the_mean_difference(
    world: tuple[np.ndarray, np.ndarray],
) -> None:
    means, normals = mean_differences(*world), svm_normals(*world)
    assert cosine(normals[1], GLASSES) > 0.9
    assert np.allclose(np.linalg.norm(normals, axis=1), np.linalg.norm(means, axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_kept_for_the_engine(
    kind: Kind, world: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mu, labels = world
    said: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("trainer.artifacts.directions"), "warning", lambda text, *values: said.append(text % values)
    )
    rare = np.zeros((4000, 1), bool)
    rare[:19] = True
    found = directions_of(mu, np.hstack([labels, rare]), ("Smiling", "Eyeglasses", "Old", "Bald"), kind)
    save_directions(tmp_path / "d.safetensors", found, D, "train", "ab" * 32)
    directions = Directions.load(tmp_path / "d.safetensors")
    assert directions.names == ("Smiling", "Eyeglasses", "Old")
    assert np.allclose(directions.vectors, KINDS[kind](mu, labels), atol=1e-5)
    assert directions.positives[0] == labels[:, 0].sum() == 4000 - directions.negatives[0]
    assert directions.kinds == (kind,) * 3
    assert directions.model_sha256 == "ab" * 32
    along = mu @ directions.vectors.T / (directions.vectors**2).sum(axis=1)
    for column, sides in enumerate(directions.sides):
        has = labels[:, column]
        assert sides == pytest.approx((along[~has, column].mean(), along[has, column].mean()), abs=1e-4)
    again, metadata = load_directions(tmp_path / "d.safetensors")
    assert [(d.name, d.kind, d.positives, d.sides) for d in again] == [
        (d.name, d.kind, d.positives, d.sides) for d in found
    ]
    assert metadata["split"] == "train"
    assert any("no direction for Bald (19 have it, 3981 do not); each side needs 20 images" in line for line in said)


def test_without_attributes_there_are_no_directions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = directions_of(np.zeros((30, D), np.float32), np.zeros((30, 0), bool), (), "adjusted")
    save_directions(tmp_path / "d.safetensors", found, D, "train")
    assert Directions.load(tmp_path / "d.safetensors").vectors.shape == (0, D)
    assert not caplog.text
