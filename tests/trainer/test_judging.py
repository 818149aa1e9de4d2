from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from trainer import figures
from trainer.classifier import Classifier, Network, train_classifier
from trainer.dataset import FaceData
from trainer.evaluate import image_metrics, judge_edit, linear_accuracy, rows_to_edit
from trainer.placement import Placement

CPU = Placement.of("cpu", "fp32")


class Colours(Network):
    """Sees "red" where the red channel is bright and "green" where the green one is."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))[:, :2] - 0.5


def colour(red: int, green: int) -> np.ndarray:
    return np.tile(np.array([red, green, 0], np.uint8), (1, 32, 32, 1))


def test_flips_and_kept_predictions_are_counted_on_faces_that_need_the_edit() -> None:
    classifier = Classifier(Colours().eval(), ("red", "green"), {}, {}, CPU)
    before = np.concatenate([colour(0, 0), colour(0, 0), colour(0, 255), colour(0, 255), colour(255, 0)])
    after = np.concatenate([colour(255, 0), colour(0, 0), colour(255, 255), colour(255, 0), colour(255, 255)])
    quality = judge_edit(classifier, "red", 1.5, before, after)
    assert quality.faces == 4  # the last one is red before
    assert quality.flipped == pytest.approx(3 / 4)
    assert quality.kept == pytest.approx(3 / 4)  # green goes away in the fourth
    removed = judge_edit(classifier, "red", -1.5, after, before)
    assert removed.faces == 4
    assert removed.flipped == pytest.approx(3 / 4)


def test_rows_to_edit_are_test_faces_on_the_other_side(data: FaceData) -> None:
    column = data.index.attributes.index("Smiling")
    adding, removing = (rows_to_edit(data, "Smiling", strength) for strength in (1.5, -1.5))
    assert not data.index.labels[adding, column].any()
    assert data.index.labels[removing, column].all()
    assert sorted([*adding, *removing]) == data.rows("test").tolist()


def test_image_metrics_of_known_differences() -> None:
    images = np.random.default_rng(0).integers(0, 200, (3, 32, 32, 3), np.uint8)
    metrics = image_metrics(images, images + 10)
    assert metrics["psnr_db"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)
    assert 0.5 < metrics["ssim"] < 1
    assert image_metrics(images, images.copy())["ssim"] == pytest.approx(1)


def test_attributes_are_read_off_latents_by_a_linear_model() -> None:
    random = np.random.default_rng(0)
    mu = random.standard_normal((400, 5)).astype(np.float32)
    labels = np.column_stack([mu[:, 0] > 0.5, random.random(400) < 0.5])  # one is in the latents, one is not
    right = linear_accuracy(mu[:300], labels[:300], mu[300:], labels[300:])
    assert right[0] > 0.8
    assert 0.3 < right[1] < 0.7


def test_psnr_is_averaged_over_images_not_over_errors() -> None:
    images = np.full((2, 32, 32, 3), 100, np.uint8)
    worse = images.copy()
    worse[0] += 1
    worse[1] += 50
    expected = np.mean([20 * np.log10(255 / 1), 20 * np.log10(255 / 50)])
    assert image_metrics(images, worse)["psnr_db"] == pytest.approx(expected, abs=1e-3)


def test_the_classifier_learns_and_is_kept_for_the_same_data_only(data: FaceData, tmp_path: Path) -> None:
    classifier = train_classifier(data, CPU, epochs=60)
    assert classifier.accuracy["Bald"] >= classifier.majority["Bald"]
    train = data.rows("train")
    right = (classifier.predict(data.images[train]) == data.index.labels[train]).mean()
    assert right > 0.8
    classifier.save(tmp_path / "c.safetensors", "these data")
    again = Classifier.load(tmp_path / "c.safetensors", "these data", CPU)
    assert again is not None
    assert again.accuracy == classifier.accuracy
    assert np.array_equal(again.predict(data.images[:50]), classifier.predict(data.images[:50]))
    assert Classifier.load(tmp_path / "c.safetensors", "other data", CPU) is None
    assert Classifier.load(tmp_path / "none.safetensors", "these data", CPU) is None


def test_a_grid_puts_every_image_in_its_place() -> None:
    first = np.zeros((3, 4, 4, 3), np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
    sheet = figures.grid([first, first + 10], gap=1)
    assert sheet.shape == (11, 16, 3)
    assert sheet[1, 6, 0] == 1
    assert sheet[6, 11, 0] == 12
    assert sheet[0, 0, 0] == 255
