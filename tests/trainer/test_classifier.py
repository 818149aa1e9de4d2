from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor

from trainer.data import FaceData
from trainer.evaluation.classifier import CLASSIFIER, Classifier, classifier_of, train_classifier
from trainer.hardware.device import Placement

CPU = Placement.of("cpu", "fp32")
IMAGES = Placement.images


@pytest.fixture(scope="module")
def classifier(data: FaceData) -> Classifier:
    """Trained for a while on the small data set."""
    return train_classifier(data, CPU, epochs=20)


def test_it_learns(classifier: Classifier, data: FaceData) -> None:
    assert classifier.accuracy["Bald"] >= classifier.majority["Bald"]
    train = data.rows("train")
    right = (classifier.predict(data.images[train]) == data.index.labels[train]).mean()
    assert right > 0.8


def test_an_image_and_its_mirror_image_are_judged_alike(classifier: Classifier, data: FaceData) -> None:
    images = data.images[:200]
    logits = classifier.logits(images)
    assert logits.shape == (200, len(data.index.attributes))
    assert np.allclose(logits, classifier.logits(images[:, :, ::-1]), atol=1e-4)
    assert np.array_equal(classifier.predict(images), logits > 0)
    assert not np.allclose(logits, logits[0], atol=0.1)


def test_it_is_kept_for_the_same_data_only(classifier: Classifier, data: FaceData, tmp_path: Path) -> None:
    path = tmp_path / CLASSIFIER
    classifier.save(path, "these data")
    again = Classifier.load(path, "these data", CPU)
    assert again is not None
    assert again.accuracy == classifier.accuracy
    assert np.array_equal(again.predict(data.images[:50]), classifier.predict(data.images[:50]))
    assert Classifier.load(path, "other data", CPU) is None
    assert Classifier.load(tmp_path / "none.safetensors", "these data", CPU) is None
    path.write_bytes(path.read_bytes()[:1000])
    assert Classifier.load(path, "these data", CPU) is None


def test_it_is_trained_once_a_folder(data: FaceData, tmp_path: Path) -> None:
    first = classifier_of(tmp_path, data, CPU)
    written = (tmp_path / CLASSIFIER).stat().st_mtime_ns
    second = classifier_of(tmp_path, data, CPU)
    assert (tmp_path / CLASSIFIER).stat().st_mtime_ns == written
    assert second.accuracy == first.accuracy


def test_training_is_a_function_of_its_seed(data: FaceData) -> None:
    one, same, other = (train_classifier(data, CPU, epochs=2, seed=seed) for seed in (1, 1, 2))
    images = data.images[:20]
    assert np.array_equal(one.logits(images), same.logits(images))
    assert not np.array_equal(one.logits(images), other.logits(images))


@pytest.mark.parametrize(("images", "batch", "steps"), [(3, 3, 2), (40, 8, 10), (120, 15, 16), (160, 20, 16)])
def test_small_data_are_seen_in_small_batches_none_of_which_is_empty(
    data: FaceData, monkeypatch: pytest.MonkeyPatch, images: int, batch: int, steps: int
) -> None:
    splits = data.index.splits.copy()
    splits[data.rows("train")[images:]] = 1
    sizes = []

    def counted(place: Placement, batch: "npt.NDArray[np.uint8]") -> Tensor:
        sizes.append(len(batch))
        return IMAGES(place, batch)

    monkeypatch.setattr(Placement, "images", counted)
    train_classifier(replace(data, index=replace(data.index, splits=splits)), CPU, epochs=2)
    assert sizes[:-1] == [batch] * steps  # the last are the test split's, which it is measured on
