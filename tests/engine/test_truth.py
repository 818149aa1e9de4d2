import json
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from runs import ATTRIBUTES, LATENT_DIM, small_vae, smooth_images

from engine.latents import Directions
from export.errors import ParityError
from export.parity import TOLERANCES, ImageError, LatentError, Report, Stage, Tolerances
from export.reference import EagerBackend
from export.truth import Truth

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


@pytest.fixture(scope="module")
def truth(images: Bytes, directions: Directions) -> Truth:
    return Truth("the model", EagerBackend(small_vae()), images, directions, batch_size=3)


def measure(engine: Recorder, truth: Truth) -> Stage:
    return truth.compare(engine, "recorder", TOLERANCES["fp32"])


def test_latent_error_by_hand() -> None:
    reference = np.array([[0, 10], [2, 10], [4, 10]], np.float32)  # standard deviations sqrt(8/3) and 0
    error = LatentError.between(reference + np.array([[0, 0.5], [0, 0], [-0.25, 0]], np.float32), reference)
    assert error.max_abs == 0.5
    assert error.mean_abs == pytest.approx(0.75 / 6)
    assert error.spread == pytest.approx(math.sqrt(8 / 3 / 2))
    assert error.max_relative == pytest.approx(0.5 / math.sqrt(4 / 3))
    assert error.mean_relative == pytest.approx(0.75 / 6 / math.sqrt(4 / 3))


def test_image_error_by_hand() -> None:
    reference = np.full((1, 2, 2, 3), 250, np.uint8)
    images = reference.copy()
    images[0, 0, 0] = (253, 0, 250)
    error = ImageError.between(images, reference)
    assert error.max_levels == 250
    assert error.mean_levels == pytest.approx(253 / 12)
    assert error.psnr_db == pytest.approx(10 * math.log10(255**2 / ((9 + 62500) / 12)))
    assert ImageError.between(reference, reference) == ImageError(0, 0.0, None)


def test_equal_engines_pass_and_see_every_kind_of_batch(truth: Truth) -> None:
    engine = Recorder()
    stage = measure(engine, truth)
    assert stage.failures() == []
    assert [len(batch) for batch in engine.encoded] == [1, 2, 3, 1] * 2, "to measure mu, and to edit"
    assert [len(batch) for batch in engine.decoded] == [1, 2, 3, 1] * 3
    assert {error.max_abs for error in stage.latents.values()} == {0.0}
    assert {error.psnr_db for error in stage.images.values()} == {None}
    assert stage.table("engine").count(" ok") == 5
    assert "FAIL" not in stage.table("engine")


def test_edits_take_the_directions_in_turn(images: Bytes, truth: Truth) -> None:
    engine = Recorder()
    measure(engine, truth)
    mu, _ = engine.truth.encode(images)
    edited = np.concatenate(engine.decoded[-4:])
    expected = np.eye(3, LATENT_DIM)[[0, 1, 2, 0, 1, 2, 0]]
    np.testing.assert_allclose(edited - mu, expected, atol=1e-5)


def test_without_directions_the_edit_reconstructs(images: Bytes) -> None:
    engine = Recorder()
    none = Directions((), np.zeros((0, LATENT_DIM), np.float32), (), (), "train")
    truth = Truth("the model", EagerBackend(small_vae()), images, none, batch_size=3)
    assert measure(engine, truth).failures() == []
    np.testing.assert_allclose(np.concatenate(engine.decoded[-4:]), engine.truth.encode(images)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "results"),
    [
        (Recorder(log_var_error=1e-2), ["log_var"]),
        (Recorder(mu_error=1e-3), ["mu"]),
        (Recorder(level_error=2), ["decode of mu", "decode of N(0, I)", "edit"]),
        (Recorder(log_var_error=math.nan), ["log_var"]),
    ],
)
def test_each_result_is_named_when_it_fails(engine: Recorder, results: list[str], truth: Truth) -> None:
    stage = measure(engine, truth)
    failures = stage.failures()
    assert [failure.split(" is off by ")[0] for failure in failures] == results
    assert stage.table("engine").count("FAIL") == len(results)
    with pytest.raises(ParityError) as refusal:
        Report("the model", 7, "nobody", {"engine": stage}).require()
    assert str(refusal.value).startswith("stage engine (recorder) differs from the model: ")
    assert all(failure in str(refusal.value) for failure in failures)


def test_the_failure_states_figure_and_tolerance(truth: Truth) -> None:
    stage = measure(Recorder(level_error=2), truth)
    assert stage.failures()[0] == "decode of mu is off by up to 2 of 255 levels (tolerance 1)"
    stage = measure(Recorder(log_var_error=1e-2), truth)
    error = stage.latents["log_var"]
    assert stage.failures() == [
        f"log_var is off by {error.max_relative:.2e} of its spread of {error.spread:.3g} (tolerance 1.00e-04)"
    ]


def test_psnr_has_a_tolerance_of_its_own(truth: Truth) -> None:
    engine = Recorder(level_error=2)  # everywhere: 10 log10(255^2 / 4) = 42.1 dB
    stage = truth.compare(engine, "recorder", Tolerances(latents=1.0, levels=2, psnr_db=42.0))
    assert stage.failures() == []
    stage = truth.compare(engine, "recorder", Tolerances(latents=1.0, levels=2, psnr_db=42.2))
    assert stage.failures()[0] == "decode of mu has 42.1 dB PSNR (tolerance 42.2)"
    assert stage.table("engine").count("FAIL") == 3


def test_the_first_stage_beyond_its_tolerances_is_named(truth: Truth) -> None:
    good, bad = measure(Recorder(), truth), measure(Recorder(level_error=2), truth)
    report = Report("the model", 7, "nobody", {"portable": good, "rewritten": bad, "engine": bad})
    assert report.failures() == bad.failures()
    with pytest.raises(ParityError, match=r"^stage rewritten \(recorder\) differs from the model: decode of mu"):
        report.require()
    Report("the model", 7, "nobody", {"portable": good}).require()


def test_latents_that_are_not_finite_are_refused_at_once(images: Bytes, directions: Directions, truth: Truth) -> None:
    with pytest.raises(ParityError, match=r"recorder's mu .* not finite"):
        measure(Recorder(mu_error=math.nan), truth)
    diverged = small_vae()
    torch.nn.init.constant_(diverged.encoder.mu.weight, math.nan)
    with pytest.raises(ParityError, match=r"the model's own mu .* diverged"):
        Truth("the model", EagerBackend(diverged), images, directions, batch_size=3)


def test_report_survives_json(truth: Truth) -> None:
    stage = measure(Recorder(mu_error=1e-6, level_error=1), truth)
    report = Report("the model", 7, "nobody", {"portable": stage, "engine": stage})
    text = json.dumps(report.to_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)) == report


def test_tolerances_widen_with_the_precision() -> None:
    fp32, bf16 = TOLERANCES["fp32"], TOLERANCES["bf16"]
    assert fp32.latents < bf16.latents
    assert fp32.levels < bf16.levels
    assert bf16.psnr_db == 45.0


def test_rounding_of_values_that_hardly_differ_is_no_error() -> None:
    reference = np.full((4, 3), -6.0, np.float32)
    rounded = np.nextafter(reference, np.float32(0))
    assert 0 < LatentError.between(rounded, reference).max_relative < 1e-4
    assert LatentError.between(reference + np.float32(1e-4), reference).max_relative > 1e-4
