import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_directions

from engine.errors import DirectionsError, InvalidRequest, UnknownAttribute
from engine.latents import Directions, Floats, edit


def floats(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_moves_add_up_with_their_strengths() -> None:
    latents, first, second = floats(3, 5), floats(5, seed=1), floats(5, seed=2)
    moved = edit(latents, [(first, 1.5), (second, -2.0)])
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, latents + 1.5 * first - 2 * second, rtol=1e-5, atol=1e-6)


def test_no_moves_leave_latents_bit_for_bit() -> None:
    latents = floats(4, 7)
    np.testing.assert_array_equal(edit(latents, [(floats(7, seed=1), 0.0)], floats(2, 7, seed=2)), latents)


def test_keep_removes_the_span_of_all_kept_directions() -> None:
    latents, move, keep = floats(2, 16), floats(16, seed=1), floats(3, 16, seed=2)
    step = edit(latents, [(move, 2.0)], keep) - latents
    np.testing.assert_allclose(step @ keep.T, 0, atol=1e-5)
    # The part that is left is the least-squares residual of the move on the kept directions.
    residual = move - keep.T @ np.linalg.lstsq(keep.T, move, rcond=None)[0]
    np.testing.assert_allclose(step, np.broadcast_to(2 * residual, step.shape), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_keep_takes_dependent_and_zero_directions(scale: float) -> None:
    latents, move, keep = np.zeros((1, 16), np.float32), floats(16, seed=1), floats(2, 16, seed=2)
    dependent = np.stack([*keep, scale * (keep[0] - 0.3 * keep[1]), scale * keep[0], np.zeros(16, np.float32)])
    np.testing.assert_allclose(edit(latents, [(move, 1)], dependent), edit(latents, [(move, 1)], keep), atol=1e-4)


def test_an_edit_beyond_float32_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"largest strength 3e\+38"):
        edit(floats(1, 4), [(np.full(4, 10, np.float32), 3e38)])


def test_directions_survive_their_file(tmp_path: Path) -> None:
    directions = tiny_directions()
    directions.save(tmp_path / "directions.safetensors")
    loaded = Directions.load(tmp_path / "directions.safetensors")
    np.testing.assert_array_equal(loaded.vectors, directions.vectors)
    assert loaded.vectors.dtype == np.float32
    for field in ("names", "positives", "negatives", "split"):
        assert getattr(loaded, field) == getattr(directions, field)
    np.testing.assert_array_equal(loaded["Male"], directions.vectors[2])


def test_an_unknown_attribute_is_named_beside_the_known_ones() -> None:
    with pytest.raises(UnknownAttribute, match="unknown attribute 'Bald'; this model has: Smiling, Eyeglasses, Male"):
        tiny_directions()["Bald"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    with pytest.raises(DirectionsError, match=r"directions\.safetensors does not exist"):
        Directions.load(path)
    tiny_directions().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DirectionsError, match=r"directions\.safetensors can't be read"):
        Directions.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("Smiling", "Male")}, "2 names, 3 vectors"),
        ({"positives": (1,)}, "1 positives"),
        ({"names": ("Male", "Smiling", "Male")}, "repeat"),
        ({"vectors": np.full((3, 4), np.nan, np.float32)}, "'Smiling' has values that are not finite"),
        ({"vectors": np.zeros((3, 4))}, "float64"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DirectionsError, match=message):
        dataclasses.replace(tiny_directions(), **change)  # type: ignore[arg-type]
