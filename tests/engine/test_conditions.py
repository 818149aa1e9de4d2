"""Conditions: what drawn latents are to have and to lack."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from engine.errors import InvalidRequest, UnknownAttribute
from engine.latents import Conditions, Directions, Gaussian, can_condition

D = 16
NAMES = ("Smiling", "Open", "Glasses", "Flat")
DRAWN = Gaussian.standard(D).draw(200, 3)


def directions() -> Directions:
    """Smiling and Open point nearly the same way; Flat has no length."""
    smiling, other, glasses = Gaussian.standard(D).draw(3, 0) / np.float32(2)
    vectors = np.stack([smiling, smiling + other / 2, glasses, np.zeros(D, np.float32)]).astype(np.float32)
    sides = ((-0.4, 0.6), (-0.4, 0.6), (-0.1, 0.9), (0.0, 0.0))
    return Directions(NAMES, vectors, (30,) * 4, (30,) * 4, "train", sides=sides)


def along(latents: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float64]:
    vector = directions()[name].astype(np.float64)
    return np.asarray(latents @ vector / (vector @ vector))


def test_drawn_latents_lie_in_all_half_spaces() -> None:
    projected = Conditions.of(directions(), ["Smiling"], ["Open", "Glasses"]).project(DRAWN)
    assert projected.dtype == np.float32
    assert (along(projected, "Smiling") > 0.6 - 1e-3).all()
    assert (along(projected, "Open") < -0.4 + 1e-3).all()
    assert (along(projected, "Glasses") < -0.1 + 1e-3).all()


def test_what_lies_there_already_stays_and_the_rest_goes_no_further() -> None:
    projected = Conditions.of(directions(), ["Glasses"], []).project(DRAWN)
    has = along(DRAWN, "Glasses") >= 0.9
    assert 0 < has.sum() < len(DRAWN)
    np.testing.assert_array_equal(projected[has], DRAWN[has])
    np.testing.assert_allclose(along(projected[~has], "Glasses"), 0.9, atol=1e-5)
    np.testing.assert_array_equal(Conditions.of(directions(), [], []).project(DRAWN), DRAWN)


def test_what_is_kept_stays_while_conditions_are_met() -> None:
    projected = Conditions.of(directions(), ["Open"], [], ["Smiling"]).project(DRAWN)
    np.testing.assert_allclose(along(projected, "Smiling"), along(DRAWN, "Smiling"), atol=1e-4)
    assert (along(projected, "Open") > 0.6 - 1e-3).all()
    assert (along(DRAWN, "Open") < 0.6).any()
    with pytest.raises(InvalidRequest, match="'Open' is both edited and kept"):
        Conditions.of(directions(), ["Open"], [], ["Open"])
    same = dataclasses.replace(directions(), vectors=directions().vectors[[0, 0, 2, 3]])
    with pytest.raises(InvalidRequest, match="nothing is left of 'Open' when Smiling must stay"):
        Conditions.of(same, [], ["Open"], ["Smiling"])


def test_what_becomes_of_a_latent_does_not_depend_on_the_others() -> None:
    conditions = Conditions.of(directions(), ["Smiling", "Glasses"], ["Open"])
    whole = conditions.project(DRAWN)
    for count in (1, 2, 7):
        np.testing.assert_array_equal(conditions.project(DRAWN[:count]), whole[:count])


def test_a_condition_counts_once() -> None:
    assert len(Conditions.of(directions(), ["Glasses"] * 9, ["Open"] * 9)) == 2


def test_conditions_that_no_face_meets_are_refused() -> None:
    known = directions()
    with pytest.raises(InvalidRequest, match="'Smiling' is in having and in lacking; take it out of one of them"):
        Conditions.of(known, ["Smiling"], ["Open", "Smiling"])
    with pytest.raises(UnknownAttribute, match="unknown attribute 'Bald'; this model has: Smiling, ") as unknown:
        Conditions.of(known, ["Smiling"], ["Open", "Bald"])
    assert unknown.value.field == "lacking[1]"
    same = dataclasses.replace(known, vectors=known.vectors[[0, 0, 2, 3]])
    with pytest.raises(InvalidRequest, match="no face meets the conditions on all of Smiling, Open; ask for few"):
        Conditions.of(same, ["Smiling"], ["Open"]).project(DRAWN)


@pytest.mark.parametrize(("name", "sides"), [("Flat", directions().sides), ("Smiling", ())])
def test_sides_that_nobody_knows_are_told(name: str, sides: tuple[tuple[float, float], ...]) -> None:
    known = dataclasses.replace(directions(), sides=sides)
    with pytest.raises(InvalidRequest, match=rf"having\[0\]: where .* {name!r} lie is not known .* trainer directions"):
        Conditions.of(known, [name], [])
    assert not can_condition(known, name)
