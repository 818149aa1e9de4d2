from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from runs import ATTRIBUTES, LATENT_DIM, small_vae, smooth_images

from engine.backends import Backend, Bytes, Floats
from engine.latents import Directions
from export.judgement import NO_RUN, Edit, edits_for, judge_of
from export.parity import Agreement, Tolerances
from export.reference import EagerBackend
from export.truth import Truth
from trainer.classifier import Classifier, Network
from trainer.placement import Placement

DIRECTIONS = Directions(ATTRIBUTES, 2 * np.eye(3, LATENT_DIM, dtype=np.float32), (20,) * 3, (20,) * 3, "train")
WIDE = Tolerances(latents=10.0, levels=255, psnr_db=0.0, judged=0.9)


class Brightness:
    """Sees every attribute on images that are brighter than a limit."""

    what = "a light meter"

    def __init__(self, limit: float, attributes: tuple[str, ...] = ATTRIBUTES) -> None:
        self.limit = limit
        self.attributes = attributes

    def sees(self, images: Bytes, attribute: str) -> npt.NDArray[np.bool_]:
        bright: npt.NDArray[np.bool_] = images.mean(axis=(1, 2, 3)) > self.limit
        return bright


class Negative(Backend):
    """The model, with images inverted from a certain number on."""

    def __init__(self, right: int) -> None:
        self.model = EagerBackend(small_vae())
        self.right = right

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        return self.model.encode(images)

    def decode(self, latents: Floats) -> Bytes:
        images = self.model.decode(latents)
        self.right -= len(images)
        return images if self.right >= 0 else 255 - images


def truth(judge: Brightness | str) -> Truth:
    images = smooth_images(10, 64)
    return Truth("the model", EagerBackend(small_vae()), images, DIRECTIONS, batch_size=10, judge=judge)


def limit() -> float:
    """No image is at it, and every negative is on its other side."""
    return 127.5


def write_classifier(run: Path, fingerprint: str) -> None:
    torch.manual_seed(0)
    accuracy = dict.fromkeys(ATTRIBUTES, 0.75)
    judge = Classifier(Network(3).eval(), ATTRIBUTES, accuracy, accuracy, Placement.of("cpu", "fp32"))
    judge.save(run / "classifier.safetensors", fingerprint)


def test_the_edits_of_the_issue_where_they_are_known() -> None:
    assert edits_for(("Bald", "Smiling", "Eyeglasses"), ATTRIBUTES) == [
        Edit("Smiling", 1.5),
        Edit("Smiling", -1.5),
        Edit("Eyeglasses", 1.5),
        Edit("Eyeglasses", -1.5),
    ]
    assert [str(edit) for edit in edits_for(("Smiling",), ATTRIBUTES)] == ["Smiling +1.5", "Smiling -1.5"]
    assert {edit.attribute for edit in edits_for(("Young", "Bald", "Male"), ("Male", "Hat", "Bald"))} == {
        "Male",
        "Bald",
    }
    assert edits_for(("Young",), ATTRIBUTES) == []


def test_agreement_by_hand() -> None:
    yes, no = np.array([True, True]), np.array([False, True])
    agreement = Agreement.between({"a": yes, "b": no}, {"a": yes, "b": yes})
    assert agreement == Agreement(4, 3, {"a": 1.0, "b": 0.5})
    assert agreement.share == 0.75


def test_an_equal_engine_is_judged_alike_in_every_case() -> None:
    stage = truth(Brightness(limit())).compare(EagerBackend(small_vae()), "itself", WIDE)
    assert stage.judged is not None
    assert (stage.judged.cases, stage.judged.alike) == (40, 40)
    assert list(stage.judged.by_edit) == ["Smiling +1.5", "Smiling -1.5", "Eyeglasses +1.5", "Eyeglasses -1.5"]
    assert "edits by judge" in stage.table("engine")
    assert stage.failures() == []


def test_an_engine_whose_edits_show_something_else_fails() -> None:
    judged = truth(Brightness(limit())).compare(Negative(right=60), "negative", WIDE)
    assert judged.judged is not None
    assert judged.judged.by_edit["Smiling +1.5"] == 1.0
    assert judged.judged.by_edit["Eyeglasses -1.5"] == 0.0
    assert judged.failures() == ["10 of 40 edits are judged differently (75.00% alike, tolerance 90.00%)"]
    assert "FAIL" in judged.table("engine")


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        (NO_RUN, "skipped: it takes the run's classifier; give --run"),
        (Brightness(1.0, ("Young",)), "skipped: the run has no directions of attributes that its classifier knows"),
    ],
)
def test_without_a_judge_the_reason_is_given(judge: Brightness | str, reason: str) -> None:
    unjudged = truth(judge)
    assert unjudged.judge == reason
    stage = unjudged.compare(EagerBackend(small_vae()), "itself", WIDE)
    assert stage.judged is None
    assert "judge" not in stage.table("engine")


def test_the_classifier_of_a_run_judges(tmp_path: Path) -> None:
    write_classifier(tmp_path, "abc")
    judge = judge_of(tmp_path, "abc")
    assert not isinstance(judge, str)
    assert judge.what == "the run's classifier (75.0% right on its test images)"
    images = smooth_images(4, 64)
    classifier = Classifier.load(tmp_path / "classifier.safetensors", "abc", Placement.of("cpu", "fp32"))
    assert classifier is not None
    np.testing.assert_array_equal(judge.sees(images, "Bald"), classifier.predict(images)[:, 2])


def test_a_run_without_its_classifier_says_how_to_get_one(tmp_path: Path) -> None:
    assert str(judge_of(tmp_path, "abc")).startswith("skipped: the run has no classifier.safetensors; run `python -m t")
    write_classifier(tmp_path, "abc")
    assert "of other data than the run's" in str(judge_of(tmp_path, "other"))
    assert "of other data than the run's" in str(judge_of(tmp_path, None))
    (tmp_path / "classifier.safetensors").write_bytes(b"torn")
    assert "is damaged" in str(judge_of(tmp_path, "abc"))
