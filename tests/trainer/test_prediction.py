import numpy as np
import pytest

from trainer.evaluation.prediction import Split, average_precision, balanced_accuracy, measure, svm
from trainer.evaluation.skipped import SkippedError

NAMES = ("known", "noise", "fine", "never")


def split(count: int, seed: int) -> Split:
    """An attribute that mu knows, one that it knows nothing of, one of a fine dimension, one that never occurs."""
    random = np.random.default_rng(seed)
    mu = random.standard_normal((count, 5)).astype(np.float32) * [1, 1, 50, 1, 0.01] + [0, 0, 900, 0, 0]
    labels = np.column_stack([mu[:, 0] > 0.5, random.random(count) < 0.5, mu[:, 4] > 0, np.zeros(count, bool)])
    return Split(mu.astype(np.float32), labels)


TRAIN, TEST = split(1500, 0), split(800, 1)


def test_what_mu_knows_is_read_off_it_and_what_it_does_not_is_not() -> None:
    values = measure(NAMES, TRAIN, TEST)
    assert values["accuracy"]["known"] > 0.97 > values["majority"]["known"]
    assert values["balanced_accuracy"]["known"] > 0.97
    assert 0.4 < values["balanced_accuracy"]["noise"] < 0.6
    assert values["average_precision"]["known"] > 0.97
    assert values["average_precision"]["noise"] == pytest.approx(0.5, abs=0.1)
    assert values["average_precision_mean"] == pytest.approx(np.mean(list(values["average_precision"].values())))
    assert values["left_out"] == ["never"]
    assert set(values["accuracy"]) == {"known", "noise", "fine"}
    assert values["accuracy_mean"] == pytest.approx(np.mean(list(values["accuracy"].values())))
    assert values["images"] == {"train": 1500, "test": 800}


def test_the_svm_does_not_depend_on_the_scale_of_mu() -> None:
    """The attribute that is in a dimension of spread 0.01, beside one of 50, is found."""
    fine = slice(2, 3)
    scores = svm(Split(TRAIN.mu, TRAIN.labels[:, fine]), TEST)
    assert balanced_accuracy(scores > 0, TEST.labels[:, fine]) == [pytest.approx(1, abs=0.05)]


def test_balanced_accuracy_of_known_predictions() -> None:
    labels = np.array([[1, 1], [0, 1], [0, 1], [0, 1]], bool)
    predicted = np.array([[0, 1], [0, 1], [0, 0], [0, 1]], bool)
    assert balanced_accuracy(predicted, labels) == [0.5, None]  # always the majority; all of one side


def test_average_precision_of_known_scores() -> None:
    labels = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]], bool)
    scores = np.array([[4.0, 0, 0], [3, 1, 1], [2, 2, 2], [1, 3, 3]])
    # The first attribute's images come first and third: precision 1 at recall 1/2, 2/3 at recall 1.
    assert average_precision(scores, labels) == [pytest.approx((1 + 2 / 3) / 2), None, None]


def test_without_a_usable_attribute_the_reason_is_given() -> None:
    none = Split(TRAIN.mu, np.zeros((len(TRAIN.mu), 0), bool))
    with pytest.raises(SkippedError, match="needs attributes, and this data set has none"):
        measure((), none, none)
    with pytest.raises(SkippedError, match="some training images have and others do not"):
        measure(("never",), Split(TRAIN.mu, TRAIN.labels[:, 3:]), Split(TEST.mu, TEST.labels[:, 3:]))
