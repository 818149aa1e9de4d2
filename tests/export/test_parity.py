import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from runs import ATTRIBUTES, LATENT_DIM, small_vae, smooth_images

from engine.latents import Directions
from export.errors import ParityError
from export.parity import ImageError, LatentError, Report, Tolerances, compare
from export.reference import EagerBackend

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Recorder:
    """The reference with an error of known size added, which remembers the batches it was given."""

    def __init__(self, mu_error: float = 0.0, log_var_error: float = 0.0, level_error: int = 0) -> None:
        self.truth = EagerBackend(small_vae())
        self.errors = (np.float32(mu_error), np.float32(log_var_error), level_error)
        self.encoded: list[Bytes] = []
        self.decoded: list[Floats] = []

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        self.encoded.append(images)
        mu, log_var = self.truth.encode(images)
        return mu + self.errors[0], log_var + self.errors[1]

    def decode(self, latents: Floats) -> Bytes:
        self.decoded.append(latents)
        images = self.truth.decode(latents).astype(np.int16)
        shifted = np.where(images > 127, images - self.errors[2], images + self.errors[2])
        return shifted.astype(np.uint8)


@pytest.fixture(scope="module")
def directions() -> Directions:
    vectors = np.eye(3, LATENT_DIM, dtype=np.float32)
    return Directions(ATTRIBUTES, vectors, (20,) * 3, (20,) * 3, "train")


@pytest.fixture(scope="module")
def images() -> Bytes:
    return smooth_images(7, 64)


def measure(engine: Recorder, images: Bytes, directions: Directions) -> Report:
    truth = EagerBackend(small_vae())
    return compare(engine, truth, images, directions, batch_size=3, tolerances=Tolerances())


def test_latent_error_by_hand() -> None:
    reference = np.array([[0, 10], [2, 10], [4, 10]], np.float32)  # standard deviations sqrt(8/3) and 0
    error = LatentError.between(reference + np.array([[0, 0.5], [0, 0], [-0.25, 0]], np.float32), reference)
    assert error.max_abs == 0.5
    assert error.mean_abs == pytest.approx(0.75 / 6)
    assert error.spread == pytest.approx(math.sqrt(8 / 3 / 2))
    assert error.max_relative == pytest.approx(0.5 / math.sqrt(4 / 3))


def test_image_error_by_hand() -> None:
    reference = np.full((1, 2, 2, 3), 250, np.uint8)
    images = reference.copy()
    images[0, 0, 0] = (253, 0, 250)
    error = ImageError.between(images, reference)
    assert error.max_levels == 250
    assert error.mean_levels == pytest.approx(253 / 12)
    assert error.psnr_db == pytest.approx(10 * math.log10(255**2 / ((9 + 62500) / 12)))
    assert ImageError.between(reference, reference) == ImageError(0, 0.0, None)


def test_equal_engines_pass_and_see_small_batches_only(images: Bytes, directions: Directions) -> None:
    engine = Recorder()
    report = measure(engine, images, directions)
    report.require()
    assert [len(batch) for batch in engine.encoded] == [3, 3, 1]
    assert [len(batch) for batch in engine.decoded] == [3, 3, 1] * 3
    assert report.samples == 7
    assert {error.max_abs for error in report.latents.values()} == {0.0}
    assert {error.psnr_db for error in report.images.values()} == {None}
    assert report.table().count(" ok") == 5
    assert "FAIL" not in report.table()


def test_edits_take_the_directions_in_turn(images: Bytes, directions: Directions) -> None:
    engine = Recorder()
    measure(engine, images, directions)
    mu, _ = engine.truth.encode(images)
    edited = np.concatenate(engine.decoded[-3:])
    expected = np.eye(3, LATENT_DIM)[[0, 1, 2, 0, 1, 2, 0]]
    np.testing.assert_allclose(edited - mu, expected, atol=1e-5)


def test_without_directions_the_edit_reconstructs(images: Bytes) -> None:
    engine = Recorder()
    none = Directions((), np.zeros((0, LATENT_DIM), np.float32), (), (), "train")
    measure(engine, images, none).require()
    np.testing.assert_allclose(np.concatenate(engine.decoded[-3:]), engine.truth.encode(images)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "stages"),
    [
        (Recorder(log_var_error=1e-2), ["log_var"]),
        (Recorder(mu_error=1e-3), ["mu"]),
        (Recorder(level_error=2), ["decode of mu", "decode of N(0, I)", "edit"]),
        (Recorder(log_var_error=math.nan), ["log_var"]),
    ],
)
def test_each_stage_is_named_when_it_fails(
    engine: Recorder, stages: list[str], images: Bytes, directions: Directions
) -> None:
    report = measure(engine, images, directions)
    failures = report.failures()
    assert [failure.split(" is off by ")[0] for failure in failures] == stages
    assert report.table().count("FAIL") == len(stages)
    with pytest.raises(ParityError) as refusal:
        report.require()
    assert all(failure in str(refusal.value) for failure in failures)


def test_the_failure_states_figure_and_tolerance(images: Bytes, directions: Directions) -> None:
    report = measure(Recorder(level_error=2), images, directions)
    assert report.failures()[0] == "decode of mu is off by up to 2 of 255 levels (tolerance 1)"
    report = measure(Recorder(log_var_error=1e-2), images, directions)
    error = report.latents["log_var"]
    assert report.failures() == [
        f"log_var is off by {error.max_relative:.2e} of its spread of {error.spread:.3g} (tolerance 1.00e-04)"
    ]


def test_latents_that_are_not_finite_are_refused_at_once(images: Bytes, directions: Directions) -> None:
    with pytest.raises(ParityError, match=r"engine's mu .* not finite"):
        measure(Recorder(mu_error=math.nan), images, directions)
    diverged = small_vae()
    torch.nn.init.constant_(diverged.encoder.mu.weight, math.nan)
    with pytest.raises(ParityError, match=r"PyTorch's own mu .* diverged"):
        compare(Recorder(), EagerBackend(diverged), images, directions, batch_size=3, tolerances=Tolerances())


def test_report_survives_json(tmp_path: Path, images: Bytes, directions: Directions) -> None:
    report = measure(Recorder(mu_error=1e-6, level_error=1), images, directions)
    text = json.dumps(report.to_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)) == report
