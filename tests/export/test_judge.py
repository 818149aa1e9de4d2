from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ATTRIBUTES, LATENT_DIM, small_vae, smooth_images

from engine.arrays import Bytes, Floats
from engine.backends import Backend
from engine.latents import Directions
from engine.proof.figures import Judgement, Stage, Tolerances
from export.proof.judge import LEAST_SHIFT, NO_RUN, Judge, Trial
from export.proof.reference import EagerBackend, judge_of
from trainer.evaluation.classifier import Classifier, Network
from trainer.hardware.device import Placement

DIRECTIONS = Directions(ATTRIBUTES, 8 * np.eye(3, LATENT_DIM, dtype=np.float32), (20,) * 3, (20,) * 3, "train")
TOLERANCES = Tolerances(latents=1.0, levels=255, psnr_db=0.0, mean_levels=255.0, bias_levels=255.0, logits=0.05)


def light_meter(*attributes: str) -> Judge:
    """Is as sure of its attributes as the image is bright in red, green and blue."""

    def logits(images: Bytes) -> Floats:
        brightness: Floats = images.mean(axis=(1, 2), dtype=np.float32)
        return brightness[:, : len(attributes or ATTRIBUTES)]

    return Judge("a light meter", attributes or ATTRIBUTES, logits)


class Weak(Backend):
    """The model, whose edits along one direction reach only so far, and which remembers its largest batch."""

    def __init__(self, direction: int, reach: float) -> None:
        self.model = EagerBackend(small_vae())
        self.direction, self.reach = direction, reach
        self.largest = 0

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        return self.model.encode(images)

    def decode(self, latents: Floats) -> Bytes:
        return self.model.decode(latents)

    def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
        self.largest = max(self.largest, len(images))
        mu, _ = self.encode(images)
        reach = np.ones(LATENT_DIM, np.float32)
        reach[self.direction] = self.reach
        return self.decode(mu + steps * reach), mu


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(light_meter(), EagerBackend(small_vae()), smooth_images(6, 64), DIRECTIONS)


def write_classifier(run: Path, fingerprint: str) -> None:
    torch.manual_seed(0)
    accuracy = dict.fromkeys(ATTRIBUTES, 0.75)
    judge = Classifier(Network(3).eval(), ATTRIBUTES, accuracy, accuracy, Placement.of("cpu", "fp32"))
    judge.save(run / "classifier.safetensors", fingerprint)


def test_every_attribute_is_edited_to_both_sides(trial: Trial) -> None:
    engine = Weak(0, 1.0)
    judged = trial.judge(engine, 4)
    assert list(judged.shares) == [f"{name} {sign}0.5" for name in ATTRIBUTES for sign in "+-"]
    assert max(judged.shares.values()) < 1e-3
    assert engine.largest == 4
    assert trial.what == "6 edits, 0.5 to both sides, by a light meter"


def test_an_edit_that_shows_less_is_named(trial: Trial) -> None:
    judged = trial.judge(Weak(1, 0.5), 4)
    assert judged.worst in ("Eyeglasses +0.5", "Eyeglasses -0.5")
    assert judged.shares[judged.worst] > 0.2
    assert judged.shares["Smiling +0.5"] < 1e-3
    stage = Stage("it", TOLERANCES, {}, {}, judged)
    (failure,) = stage.failures()
    assert failure.startswith(f"edit {judged.worst} moves the classifier's mean logit of ")
    assert failure.endswith(" of the edit's own shift away (tolerance 0.05)")
    assert "FAIL" in stage.table("engine")


def test_what_an_edit_should_leave_alone_counts_too() -> None:
    """The share is that of the logit that moved most, whichever attribute's it is."""
    reference = EagerBackend(small_vae())
    trial = Trial(light_meter("Smiling", "Young", "Old"), reference, smooth_images(6, 64), DIRECTIONS)

    class TooBlue(Weak):
        def decode(self, latents: Floats) -> Bytes:
            images = super().decode(latents)
            images[..., 2] //= 2
            return images

    judged = trial.judge(TooBlue(0, 1.0), 6)
    assert judged.attributes == {"Smiling +0.5": "Old", "Smiling -0.5": "Old"}
    assert len(Stage("it", TOLERANCES, {}, {}, judged).failures()) == 1


def test_edits_that_do_nothing_are_no_reason_to_fail() -> None:
    nothing = Directions(("Smiling",), np.zeros((1, LATENT_DIM), np.float32), (20,), (20,), "train")
    trial = Trial(light_meter(), EagerBackend(small_vae()), smooth_images(2, 64), nothing)
    judged = trial.judge(Weak(0, 1.0), 2)
    assert max(judged.shares.values()) * LEAST_SHIFT < 1e-2


def test_the_worst_edit_decides() -> None:
    judged = Judgement({"a": 0.01, "b": 0.2, "c": 0.03}, {"a": "A", "b": "B", "c": "C"})
    assert judged.worst == "b"
    assert len(Stage("it", TOLERANCES, {}, {}, judged).failures()) == 1


def test_without_a_judge_the_reason_is_given() -> None:
    reference, images = EagerBackend(small_vae()), smooth_images(2, 64)
    assert Trial.of(NO_RUN, reference, images, DIRECTIONS) == "skipped: it takes the run's classifier; give --run"
    unknown = Trial.of(light_meter("Young"), reference, images, DIRECTIONS)
    assert unknown == "skipped: the run has no directions of attributes that its classifier knows"
    assert isinstance(Trial.of(light_meter(), reference, images, DIRECTIONS), Trial)


def test_the_classifier_of_a_run_judges(tmp_path: Path) -> None:
    write_classifier(tmp_path, "abc")
    judge = judge_of(tmp_path, "abc")
    assert not isinstance(judge, str)
    assert judge.what == "the run's classifier (75.0% right on its test images)"
    images = smooth_images(4, 64)
    classifier = Classifier.load(tmp_path / "classifier.safetensors", "abc", Placement.of("cpu", "fp32"))
    assert classifier is not None
    np.testing.assert_array_equal(judge.logits(images), classifier.logits(images))


def test_a_run_without_its_classifier_says_how_to_get_one(tmp_path: Path) -> None:
    assert str(judge_of(tmp_path, "abc")).startswith("skipped: the run has no classifier.safetensors; run `python -m t")
    write_classifier(tmp_path, "abc")
    assert "of other data than the run's" in str(judge_of(tmp_path, "other"))
    assert "of other data than the run's" in str(judge_of(tmp_path, None))
    (tmp_path / "classifier.safetensors").write_bytes(b"torn")
    assert "is damaged" in str(judge_of(tmp_path, "abc"))
