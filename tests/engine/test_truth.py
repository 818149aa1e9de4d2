import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from runs import ATTRIBUTES, LATENT_DIM, small_vae, smooth_images
from safetensors.numpy import load_file, save_file

from engine.backends import Backend
from engine.errors import BundleError, ParityError
from engine.latents import Directions, Gaussian
from engine.proof.figures import TOLERANCES, ImageError, LatentError, Report, Stage, Tolerances
from engine.proof.truth import Truth, batch_sizes, batches
from export.proof.reference import EagerBackend

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

DIRECTIONS = Directions(ATTRIBUTES, 4 * np.eye(3, LATENT_DIM, dtype=np.float32), (20,) * 3, (20,) * 3, "train")
PRIOR = Gaussian.standard(LATENT_DIM)
IMAGES = 7
DECODED = ["decode of mu", "decode of N(0, I)", "decode of samples", "edit"]


class Faulty(Backend):
    """The model with a fault of a test's own in what it gives, which remembers the batches that it was given."""

    def __init__(self, mu: float = 0.0, log_var: float = 0.0, pixels: Callable[[Bytes], Any] | None = None) -> None:
        self.truth = EagerBackend(small_vae())
        self.mu, self.log_var = np.float32(mu), np.float32(log_var)
        self.pixels = pixels or (lambda images: images)
        self.encoded: list[int] = []
        self.decoded: list[Floats] = []

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        self.encoded.append(len(images))
        mu, log_var = self.truth.encode(images)
        return mu + self.mu, log_var + self.log_var

    def decode(self, latents: Floats) -> Bytes:
        self.decoded.append(latents)
        images: Bytes = self.pixels(self.truth.decode(latents))
        return images


class Overlapping(Faulty):
    """It takes another batch meanwhile, and then computes all wrong."""

    overlaps = 1

    def __init__(self) -> None:
        super().__init__()
        self.busy = 0

    def decode(self, latents: Floats) -> Bytes:
        self.busy += 1
        images = super().decode(latents)
        alone = self.busy == 1
        self.busy -= 1
        return images if alone else 255 - images


def level(images: Bytes, by: int) -> Bytes:
    return np.where(images > 127, images.astype(np.int16) - by, images.astype(np.int16) + by).astype(np.uint8)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.of(
        "the model", EagerBackend(small_vae()), smooth_images(IMAGES, 64), DIRECTIONS, PRIOR, model_sha256="ab"
    )


def measure(engine: Faulty, truth: Truth, precision: str = "fp32", max_batch: int = 4) -> Stage:
    return truth.compare(engine, "it", TOLERANCES[precision], max_batch)


# Figures


def test_latent_error_by_hand() -> None:
    reference = np.array([[0, 10], [2, 10], [4, 10]], np.float32)  # standard deviations sqrt(8/3) and 0
    off = np.array([[0, 0.5], [0, 0], [-0.25, 0]], np.float32)
    error = LatentError.between(reference + off, reference, ["a", "b", "c"])
    spread = math.sqrt(8 / 3 / 2)
    assert error.worst == "a"
    assert (error.max_abs, error.mean_abs, error.bias) == pytest.approx((0.5, 0.75 / 6, 0.5 / 3))
    assert error.spread == pytest.approx(spread)
    relative = (error.max_relative, error.mean_relative, error.bias_relative)
    assert relative == pytest.approx((0.5 / spread, 0.75 / 6 / spread, 0.5 / 3 / spread))


def test_image_error_by_hand() -> None:
    reference = np.full((2, 2, 2, 3), 250, np.uint8)
    images = reference.copy()
    images[1, 0, 0] = (253, 0, 250)
    error = ImageError.between(images, reference, ["a", "b"])
    assert error.max_levels == 250
    assert error.mean_levels == pytest.approx(253 / 24)
    assert error.bias_levels == pytest.approx((3 - 250) / 24)
    assert error.psnr_db == pytest.approx(10 * math.log10(255**2 / ((9 + 62500) / 24)))
    assert error.worst_psnr_db == pytest.approx(10 * math.log10(255**2 / ((9 + 62500) / 12)))
    assert error.worst == "b"
    equal = ImageError.between(reference, reference, ["a", "b"])
    assert (equal.max_levels, equal.bias_levels, equal.psnr_db, equal.worst_psnr_db) == (0, 0.0, None, None)


def test_rounding_of_values_that_hardly_differ_is_no_error() -> None:
    reference = np.full((4, 3), -6.0, np.float32)
    rounded, rows = np.nextafter(reference, np.float32(0)), ["row"] * 4
    assert 0 < LatentError.between(rounded, reference, rows).max_relative < 1e-4
    assert LatentError.between(reference + np.float32(1e-4), reference, rows).max_relative > 1e-4


# Batches


def test_every_size_that_is_compiled_is_run_and_some_that_are_not() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(3) == [1, 2, 3]
    assert batch_sizes(32) == [1, 2, 3, 4, 8, 16, 31, 32]
    assert batch_sizes(12) == [1, 2, 3, 4, 6, 8, 11, 12]


@pytest.mark.parametrize("count", [2, 10, 11, 23, 40])
def test_every_row_comes_in_some_batch(count: int) -> None:
    found = list(batches(count, [1, 2, 3, 4]))
    assert [len(rows) for rows in found[:4]] == [1, 2, 3, 4]
    assert {len(rows) for rows in found[4:-1]} <= {4}
    assert set(np.concatenate(found)) == set(range(count))
    assert sum(map(len, found)) == max(count, 10)


def test_equal_engines_pass_and_see_every_kind_of_batch(truth: Truth) -> None:
    engine = Faulty()
    stage = measure(engine, truth)
    assert stage.failures() == []
    assert engine.encoded == [size for size in (1, 2, 3, 4) for _ in range(2)]  # to measure mu, and to edit
    assert {len(batch) for batch in engine.decoded} == {1, 2, 3, 4}
    assert max(error.max_abs for error in stage.latents.values()) < 1e-5  # PyTorch's own, by the size of the batch
    assert stage.table("engine").count(" ok") == 7
    assert "FAIL" not in stage.table("engine")


def test_edits_go_along_every_direction_to_both_sides(truth: Truth) -> None:
    assert truth.edits[:4] == ("Smiling +1", "Eyeglasses +1", "Bald +1", "Smiling -1")
    assert truth.edits[4:] == ("Eyeglasses -1", "Bald -1", "Smiling +1")
    rows = [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(truth.steps, DIRECTIONS.vectors[rows] * [[1], [1], [1], [-1], [-1], [-1], [1]])


def test_without_directions_the_edit_reconstructs() -> None:
    none = Directions((), np.zeros((0, LATENT_DIM), np.float32), (), (), "train")
    truth = Truth.of("the model", EagerBackend(small_vae()), smooth_images(2, 64), none, PRIOR)
    assert measure(Faulty(), truth).failures() == []
    np.testing.assert_array_equal(truth.answers["edit"], truth.answers["decode"])


# Faults


def failures_of(engine: Faulty, truth: Truth, precision: str = "fp32") -> str:
    return "; ".join(measure(engine, truth, precision).failures())


@pytest.mark.parametrize(
    ("engine", "results"),
    [
        (Faulty(log_var=1e-2), ["log_var"]),
        (Faulty(mu=1e-2), ["mu", "mu of edit", "edit"]),
        (Faulty(pixels=lambda images: level(images, 2)), DECODED),
        (Faulty(log_var=math.nan), ["log_var"]),
    ],
)
def test_each_result_is_named_when_it_fails(engine: Faulty, results: list[str], truth: Truth) -> None:
    stage = measure(engine, truth)
    failures = stage.failures()
    named = [failure.partition(" is ")[0].partition(" has ")[0] for failure in failures]
    assert list(dict.fromkeys(named)) == results
    assert stage.table("engine").count("FAIL") == len(results)
    with pytest.raises(ParityError) as refusal:
        stage.require("engine", "the model")
    assert str(refusal.value).startswith("stage engine (it) differs from the model: ")
    assert all(failure in str(refusal.value) for failure in failures)


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_one_level_too_dark_never_passes(truth: Truth, precision: str) -> None:
    dark = Faulty(pixels=lambda images: np.maximum(images, 1) - 1)
    for result in DECODED:
        assert f"{result} is 1 levels too dark in the mean" in failures_of(dark, truth, precision)


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_truncation_never_passes(truth: Truth, precision: str) -> None:
    half = np.random.default_rng(0).random((64, 64, 3)) < 0.5  # of all values, which truncation makes one smaller
    truncating = Faulty(pixels=lambda images: images - (half & (images > 0)))
    assert "levels too dark in the mean" in failures_of(truncating, truth, precision)


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_one_ruined_image_is_named(truth: Truth, precision: str) -> None:
    ruined = truth.answers["decode"][5]

    def ruin(images: Bytes) -> Bytes:
        same = [np.abs(image.astype(np.int16) - ruined).max() <= 1 for image in images]
        return np.where(np.reshape(same, (-1, 1, 1, 1)), 255 - images, images)

    found = failures_of(Faulty(pixels=ruin), truth, precision)
    assert "decode of mu has " in found
    assert "dB PSNR in image 5 (Bald -1) in a batch of " in found
    assert "samples" not in found


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_a_wrong_batch_size_is_named(truth: Truth, precision: str) -> None:
    wrong = Faulty(pixels=lambda images: images[::-1] if len(images) == 3 else images)
    assert " in a batch of 3 (tolerance" in failures_of(wrong, truth, precision)


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_one_broken_edit_is_named(truth: Truth, precision: str) -> None:
    class OneEditBroken(Faulty):
        def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
            mu, _ = self.encode(images)
            return self.decode(mu + np.where(steps[:, 1:2] < 0, 0, steps)), mu

    found = failures_of(OneEditBroken(), truth, precision)
    assert found.startswith("edit ")
    assert "in image 4 (Eyeglasses -1) in a batch of " in found
    assert "mu" not in found


def test_the_mu_that_a_fused_edit_gives_is_compared(truth: Truth) -> None:
    class WrongMu(Faulty):
        def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
            mu, _ = self.encode(images)
            return self.decode(mu + steps), mu + steps

    assert failures_of(WrongMu(), truth).startswith("mu of edit is off by ")


def test_batches_that_overlap_are_computed_at_once(truth: Truth) -> None:
    engine = Overlapping()
    failures = [failures_of(engine, truth) for _ in range(3)]  # two threads need not meet in the first
    assert any("beside another one (tolerance" in failure for failure in failures)
    assert not any("in a batch of 4 (tolerance" in failure for failure in failures)


def test_the_failure_states_figure_and_tolerance(truth: Truth) -> None:
    stage = measure(Faulty(pixels=lambda images: level(images, 2)), truth)
    assert stage.failures()[0] == "decode of mu is off by up to 2 of 255 levels (tolerance 1)"
    assert "decode of mu has 42.1 dB PSNR in image 0 (Smiling +1) in a batch of 1 (tolerance 75)" in stage.failures()
    assert "decode of mu is off by 2 levels in the mean (tolerance 0.00065)" in stage.failures()
    stage = measure(Faulty(log_var=1e-2), truth)
    error = stage.latents["log_var"]
    assert stage.failures() == [
        f"log_var is off by {error.max_relative:.2e} of its spread of {error.spread:.3g} in {error.worst} "
        "(tolerance 2.00e-04)",
        f"log_var is off by {error.bias_relative:.2e} of its spread in the mean of a dimension (tolerance 1.33e-04)",
    ]


def test_each_tolerance_is_one_of_its_own(truth: Truth) -> None:
    engine = Faulty(pixels=lambda images: level(images, 2))  # everywhere: 10 log10(255^2 / 4) = 42.1 dB
    wide = Tolerances(latents=1.0, levels=3, psnr_db=42.0, mean_levels=2.01, bias_levels=2.0, logits=1.0)

    def failing(**changes: Any) -> int:
        tolerances = dataclasses.replace(wide, **changes)
        return len(truth.compare(engine, "it", tolerances, 4).failures())

    assert failing() == 0
    assert failing(levels=1) == failing(psnr_db=42.2) == failing(mean_levels=1.9) == 4


def test_latents_that_are_not_finite_are_refused_at_once(truth: Truth) -> None:
    with pytest.raises(ParityError, match=r"it's mu .* not finite"):
        measure(Faulty(mu=math.nan), truth)
    diverged = small_vae()
    torch.nn.init.constant_(diverged.encoder.mu.weight, math.nan)
    with pytest.raises(ParityError, match=r"the model's own mu .* diverged"):
        Truth.of("the model", EagerBackend(diverged), smooth_images(2, 64), DIRECTIONS, PRIOR)


def test_report_survives_json(truth: Truth) -> None:
    stage = measure(Faulty(mu=1e-6), truth)
    report = Report("the model", 7, "nobody", {"portable": stage, "engine": stage})
    text = json.dumps(report.to_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)) == report


# The file


def test_a_truth_survives_its_file(truth: Truth, tmp_path: Path) -> None:
    truth.save(tmp_path / "proof")
    read = Truth.load(tmp_path / "proof", 64, LATENT_DIM)
    assert (read.what, read.edits, read.model_sha256) == ("the model", truth.edits, "ab")
    assert read.answers.keys() == truth.answers.keys()
    for name, values in truth.answers.items():
        np.testing.assert_array_equal(read.answers[name], values)
    assert measure(Faulty(), read).failures() == []
    assert measure(Faulty(mu=1e-2), read) == measure(Faulty(mu=1e-2), truth)


def test_files_that_are_no_proof_of_these_graphs(truth: Truth, tmp_path: Path) -> None:
    path = tmp_path / "proof.safetensors"
    truth.save(path)
    metadata = {"proof": json.dumps({"what": "it", "edits": truth.edits, "model_sha256": ""})}
    tensors = load_file(path)
    with pytest.raises(BundleError, match=r"nowhere does not exist"):
        Truth.load(tmp_path / "nowhere", 64, LATENT_DIM)
    with pytest.raises(BundleError, match=r"its images is uint8 \[7, 64, 64, 3\], .* must be uint8 \[7, 32, 32, 3\]"):
        Truth.load(path, 32, LATENT_DIM)
    with pytest.raises(BundleError, match=r"doesn't fit the graphs: its steps is float32 \[7, 16\], .*latent_dim 5"):
        Truth.load(path, 64, 5)
    save_file({**tensors, "answer.mu": tensors["answer.mu"][:3]}, path, metadata)
    with pytest.raises(BundleError, match=r"its mu is float32 \[3, 16\]"):
        Truth.load(path, 64, LATENT_DIM)
    save_file({name: values for name, values in tensors.items() if name != "sample"}, path, metadata)
    with pytest.raises(BundleError, match=r"is not a proof of a bundle: it lacks 'sample'"):
        Truth.load(path, 64, LATENT_DIM)
    save_file(tensors, path)
    with pytest.raises(BundleError, match=r"is not a proof of a bundle: it lacks 'proof'"):
        Truth.load(path, 64, LATENT_DIM)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BundleError, match=r"can't be read as a proof"):
        Truth.load(path, 64, LATENT_DIM)
