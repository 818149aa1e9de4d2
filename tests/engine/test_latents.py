import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_model import save_directions, tiny_directions

from engine.arrays import Floats
from engine.errors import DirectionsError, InvalidRequest, UnknownAttribute
from engine.latents import Directions, Move


def floats(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def directions_of(vectors: Floats) -> Directions:
    """Directions named a0, a1, ..."""
    counts = (1,) * len(vectors)
    return Directions(tuple(f"a{row}" for row in range(len(vectors))), vectors, counts, counts, "train")


def test_moves_add_up_with_their_strengths() -> None:
    first, second = floats(2, 5)
    step = directions_of(first[None]).move([("a0", 1.5), (second, -2.0)]).step
    assert step.dtype == np.float32
    np.testing.assert_allclose(step, 1.5 * first - 2 * second, rtol=1e-5, atol=1e-6)


def test_a_strength_of_0_leaves_latents_bit_for_bit() -> None:
    latents, move = floats(4, 7), directions_of(floats(3, 7)).move([("a0", 0.0)], ["a1", "a2"])
    np.testing.assert_array_equal(latents + move.step, latents)


def test_keep_removes_the_span_of_all_kept_directions() -> None:
    vectors = floats(4, 16)
    move, keep = vectors[0], vectors[1:]
    step = directions_of(vectors).move([("a0", 2.0)], ["a1", "a2", "a3"]).step
    np.testing.assert_allclose(step @ keep.T, 0, atol=1e-5)
    # The part that is left is the least-squares residual of the move on the kept directions.
    residual = move - keep.T @ np.linalg.lstsq(keep.T, move, rcond=None)[0]
    np.testing.assert_allclose(step, 2 * residual, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_keep_takes_dependent_and_zero_directions(scale: float) -> None:
    keep = floats(2, 16, seed=2)
    dependent = [scale * (keep[0] - 0.3 * keep[1]), scale * keep[0], np.zeros(16, np.float32)]
    directions = directions_of(np.stack([floats(16, seed=1), *keep, *dependent]).astype(np.float32))
    plain, more = (directions.move([("a0", 1)], kept).step for kept in (["a1", "a2"], ["a1", "a2", "a3", "a4", "a5"]))
    np.testing.assert_allclose(more, plain, atol=1e-4)


def test_an_edit_that_keep_leaves_nothing_of_is_refused() -> None:
    first, second, third = floats(3, 16)
    directions = directions_of(np.stack([first, second, third, first - 3 * second]).astype(np.float32))
    with pytest.raises(InvalidRequest) as refused:
        directions.move([("a2", 1.0), ("a3", 0.5)], ["a1", "a0"])
    assert str(refused.value) == "edits[1]: nothing is left of 'a3' when a0, a1 must stay; keep fewer"
    assert refused.value.field == "edits[1]"
    with pytest.raises(InvalidRequest, match="nothing is left of the direction when a0 must stay"):
        directions.move([(2 * first, 1.0)], ["a0"])
    assert not directions.move([("a3", 0.0)], ["a1", "a0"]).step.any()
    assert np.linalg.norm(directions.move([("a3", 1.0)], ["a0"]).step) > 1


def test_directions_survive_their_file(tmp_path: Path) -> None:
    directions = dataclasses.replace(tiny_directions(), kinds=("mean", "svm", "adjusted"), model_sha256="ab" * 32)
    save_directions(directions, tmp_path / "directions.safetensors")
    loaded = Directions.load(tmp_path / "directions.safetensors")
    np.testing.assert_array_equal(loaded.vectors, directions.vectors)
    assert loaded.vectors.dtype == np.float32
    for field in ("names", "positives", "negatives", "split", "kinds", "model_sha256", "sides"):
        assert getattr(loaded, field) == getattr(directions, field)
    np.testing.assert_array_equal(loaded["Male"], directions.vectors[2])


@pytest.mark.parametrize(("said", "kind"), [({"kind": "svm"}, "svm"), ({}, "unknown")])
def test_files_of_before_every_attribute_had_a_kind_are_read(tmp_path: Path, said: dict[str, str], kind: str) -> None:
    metadata = {"names": '["a", "b"]', "positives": "[1, 2]", "negatives": "[3, 4]", "split": "train"}
    save_file({"directions": floats(2, 5)}, tmp_path / "old.safetensors", metadata | said)
    loaded = Directions.load(tmp_path / "old.safetensors")
    assert loaded.kinds == (kind, kind)
    assert loaded.model_sha256 == ""
    assert loaded.sides == (None, None)


def test_an_unknown_attribute_is_named_beside_the_known_ones() -> None:
    with pytest.raises(UnknownAttribute, match="unknown attribute 'Bald'; this model has: Smiling, Eyeglasses, Male"):
        tiny_directions()["Bald"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    with pytest.raises(DirectionsError, match=r"directions\.safetensors does not exist"):
        Directions.load(path)
    save_directions(tiny_directions(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DirectionsError, match=r"directions\.safetensors can't be read"):
        Directions.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("Smiling", "Male")}, "2 names, 3 vectors"),
        ({"positives": (1,)}, "1 positives"),
        ({"kinds": ("mean", "mean")}, "2 kinds"),
        ({"names": ("Male", "Smiling", "Male")}, "repeat"),
        ({"vectors": np.full((3, 4), np.nan, np.float32)}, "'Smiling' has values that are not finite"),
        ({"vectors": np.zeros((3, 4))}, "float64"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DirectionsError, match=message):
        dataclasses.replace(tiny_directions(), **change)  # type: ignore[arg-type]


def test_a_move_is_checked_before_it_meets_a_batch() -> None:
    directions = tiny_directions()
    size = directions.latent_dim
    with pytest.raises(UnknownAttribute, match="'Bald'") as unknown:
        directions.move([("Male", 1.0), ("Bald", 1.0)])
    assert unknown.value.field == "edits[1]"
    with pytest.raises(UnknownAttribute, match="'Bald'") as unknown:
        directions.move([("Male", 1.0)], keep=["Bald"])
    assert unknown.value.field == "keep"
    with pytest.raises(InvalidRequest, match=r"edits\[0\]: 'Male' is both edited and kept"):
        directions.move([("Male", 1.0)], keep=["Smiling", "Male"])
    with pytest.raises(InvalidRequest, match=r"edits\[1\]\.strength is nan"):
        directions.move([("Male", 1.0), ("Smiling", float("nan"))])
    with pytest.raises(InvalidRequest, match=rf"shape \[3\]; this model's latents have {size}"):
        directions.move([(np.ones(3, np.float32), 1.0)])
    with pytest.raises(InvalidRequest, match="NaN or infinite"):
        directions.move([(np.full(size, np.inf, np.float32), 1.0)])


@pytest.mark.parametrize("strength", [1e31, -3e38, 1e308])
@pytest.mark.parametrize("keep", [(), ("Smiling",)])
def test_a_move_that_could_overflow_is_refused(strength: float, keep: tuple[str, ...]) -> None:
    directions = tiny_directions()
    with pytest.raises(InvalidRequest, match=r"at most 1e\+30 is accepted"):
        directions.move([(np.full(directions.latent_dim, 1e7, np.float32), strength), ("Male", -strength)], keep)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_move_leaves_the_largest_latents_finite(sign: float) -> None:
    largest = np.full((1, 3), sign * np.finfo(np.float32).max, np.float32)
    move = Move(np.full(3, sign * 1e30, np.float32))
    np.testing.assert_array_equal(largest + move.step, largest)


def test_kept_sets_beyond_memory_are_worked_out_again() -> None:
    directions = Directions(tuple(f"a{row}" for row in range(40)), floats(40, 64), (1,) * 40, (1,) * 40, "train")
    sets = [(f"a{first}", f"a{second}") for first in range(1, 30) for second in range(first + 1, 31)]
    before = [directions.move([("a0", 1.0)], keep).step for keep in sets[:3]]
    for keep in sets:
        step = directions.move([("a0", 1.0)], keep).step
        np.testing.assert_allclose([step @ directions[name] for name in keep], 0, atol=1e-4)
    for keep, step in zip(sets[:3], before, strict=True):
        np.testing.assert_array_equal(directions.move([("a0", 1.0)], keep[::-1]).step, step)
