"""The trainer from Python."""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import InvalidRequest, UnknownAttribute
from engine.latents import Conditions, Directions, load_priors
from export.proof.reference import EagerBackend
from trainer import VAE, presets, train
from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.errors import ConfigError, RunError
from trainer.run_folder import load_model, sha256_of


@pytest.fixture(scope="module")
def vae(trained: Path) -> VAE:
    return VAE.from_pretrained(trained, device="cpu")


@pytest.fixture(scope="module")
def images(data: FaceData) -> np.ndarray:
    return np.array(data.images[:5])


def test_it_computes_what_an_engine_must(vae: VAE, trained: Path, images: np.ndarray) -> None:
    truth = EagerBackend(load_model(trained))
    mu, _ = truth.encode(images)
    assert vae.encode(images).dtype == np.float32
    np.testing.assert_allclose(vae.encode(images), mu, atol=1e-5)
    decoded = vae.decode(mu)
    assert decoded.dtype == np.uint8
    assert decoded.shape == images.shape
    assert np.abs(decoded.astype(int) - truth.decode(mu)).max() <= 1
    assert vae.encode(images[:0]).shape == (0, vae.latent_dim)


def test_edits_are_those_of_a_server(vae: VAE, trained: Path, images: np.ndarray) -> None:
    directions = Directions.load(trained / "directions.safetensors")
    assert vae.attributes == directions.names
    step = directions.move([("Smiling", 1.5), ("Male", -1.0)], ["Bald"]).step
    np.testing.assert_array_equal(
        vae.edit(images, {"Smiling": 1.5, "Male": -1.0}, keep=["Bald"]), vae.decode(vae.encode(images) + step)
    )
    conditions = Conditions.of(directions, ["Smiling"], ["Male"], ["Bald"])
    np.testing.assert_array_equal(
        vae.edit(images, having=["Smiling"], lacking=["Male"], keep=["Bald"]),
        vae.decode(conditions.project(vae.encode(images))),
    )
    with pytest.raises(UnknownAttribute, match="unknown attribute 'Wings'; this model has: "):
        vae.edit(images, {"Wings": 1.0})
    with pytest.raises(InvalidRequest, match="strength is nan"):
        vae.edit(images, {"Smiling": float("nan")})


def test_samples_are_those_of_a_server(vae: VAE, trained: Path) -> None:
    priors = load_priors(trained / "prior.safetensors")
    latents = next(iter(priors.values())).draw(3, 7, 0.5)
    np.testing.assert_array_equal(vae.sample(3, seed=7, temperature=0.5), vae.decode(latents))
    conditions = Conditions.of(Directions.load(trained / "directions.safetensors"), ["Smiling"], ["Bald"])
    conditional = vae.sample(3, seed=7, temperature=0.5, having=["Smiling"], lacking=["Bald"])
    np.testing.assert_array_equal(conditional, vae.decode(conditions.project(latents)))


def test_files_are_read_as_in_training(vae: VAE, data: FaceData) -> None:
    rows = data.rows("test")[:3]
    np.testing.assert_array_equal(vae.read(data.index.path(row) for row in rows), data.images[rows])


def test_one_name_is_not_taken_for_its_letters(vae: VAE, images: np.ndarray) -> None:
    calls: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: vae.read("face.jpg"), "paths takes several, for example ['face.jpg'], not 'face.jpg' alone"),
        (lambda: vae.edit(images, {"Smiling": 1}, keep="Male"), "keep takes several, for example ['Male'], not"),
        (lambda: vae.edit(images, having="Smiling"), "having takes several, for example ['Smiling'], not"),
        (lambda: vae.sample(1, lacking="Smiling"), "lacking takes several, for example ['Smiling'], not"),
    )
    for call, said in calls:
        with pytest.raises(TypeError, match=re.escape(said)):
            call()


def test_a_device_is_one_of_three_words(trained: Path) -> None:
    with pytest.raises(ConfigError, match="--device gpu: must be auto, cpu or cuda"):
        VAE.from_pretrained(trained, device="gpu")


@pytest.mark.parametrize("wrong", [np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 64, 64, 3), np.uint8)])
def test_images_of_another_form_are_refused(vae: VAE, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 32, 32, 3\), not .*VAE\.read brings"):
        vae.encode(wrong)
    with pytest.raises(ValueError, match=r"latents must be float32 \(N, 16\), not float64 \(1, 16\)"):
        vae.decode(np.zeros((1, 16)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="latents must be finite numbers"):
        vae.decode(np.full((1, 16), np.nan, np.float32))


def test_weights_and_configuration_alone_encode_and_decode(trained: Path, images: np.ndarray, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(trained / name, tmp_path / name)
    vae = VAE.from_pretrained(str(tmp_path))
    assert vae.decode(vae.encode(images)).shape == images.shape
    missing = r"does not exist; make it anew with `python -m trainer directions \S+ --data DIR`"
    with pytest.raises(RunError, match=r"directions\.safetensors " + missing):
        vae.edit(images, {"Smiling": 1.0})
    with pytest.raises(RunError, match=r"prior\.safetensors " + missing):
        vae.sample(1)


def test_training_from_python_is_that_of_the_command(
    faces: Path, trained: Path, small: TrainConfig, tmp_path: Path
) -> None:
    assert presets.plain().preset == "plain"
    train(replace(small, epochs=1), str(faces), str(tmp_path / "run"))
    ours, theirs = (load_model(run).state_dict() for run in (tmp_path / "run", trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_run_has_a_card(trained: Path) -> None:
    text = (trained / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert "license: other\n" in head
    assert "library_name: dfc-vae\n" in head
    assert "model-index" not in head
    for fact in ("preset `plain`", "160 images of `faces`", "32x32", 'VAE.from_pretrained("FOLDER")', "Smiling"):
        assert fact in " ".join(body.split())
    assert str(trained.parent) not in text


def test_a_card_shows_what_was_measured_and_leaves_a_text_of_ones_own(trained: Path, tmp_path: Path) -> None:
    from trainer.artifacts.model_card import MARKER, write_card

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    measured = {"reconstruction": {"psnr_db": 21.987, "ssim": 0.61, "lpips": {"skipped": "no weights"}}}
    (run / "metrics.json").write_text(json.dumps(measured))
    write_card(run)
    text = (run / "README.md").read_text()
    assert "    - type: psnr\n" in text
    assert "      value: 21.99\n" in text
    assert "| SSIM of reconstructions | 0.61 |" in text
    assert "lpips" not in text
    about = {"files": {"model.safetensors": sha256_of(run / "model.safetensors")}, "data": {"name": "other-faces"}}
    (run / "metrics.json").write_text(json.dumps(measured | {"evaluation": about}))
    write_card(run)
    text = (run / "README.md").read_text()
    assert 'name: "other-faces"\n' in text
    assert "| measured on held-out images of `other-faces` | |" in text
    (run / "README.md").write_text(text.replace(MARKER, "My own text."))
    write_card(run)
    assert "My own text." in (run / "README.md").read_text()


def test_a_card_shows_nothing_of_other_weights(trained: Path, tmp_path: Path) -> None:
    from trainer.artifacts.model_card import write_card

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    measured = {"evaluation": {"files": {"model.safetensors": "ab" * 32}}, "reconstruction": {"psnr_db": 21.987}}
    (run / "metrics.json").write_text(json.dumps(measured))
    write_card(run)
    text = (run / "README.md").read_text()
    assert "21.99" not in text
    assert "It has not been measured yet" in text


def test_a_configuration_made_in_python_holds_what_it_may() -> None:
    config = replace(presets.plain(), epochs=np.int64(3), labels="own.csv", source=[178, 218])  # type: ignore[arg-type]
    assert (config.epochs, config.labels, config.source) == (3, Path("own.csv").absolute(), (178, 218))
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    for wrong, said in (
        ({"optimizer": "sgd"}, "--optimizer sgd: must be 'adam', 'muon' or 'muon-sgd'"),
        ({"precision": "fp16"}, "--precision fp16: must be 'auto', 'fp32' or 'bf16'"),
        ({"epochs": 1.5}, "--epochs 1.5: must be a valid integer"),
        ({"taps": "relu1_1"}, "--taps relu1_1: must be a valid tuple"),
        ({"seed": 2**63}, f"--seed {2**63}: must lie between 0 and {2**63 - 1}"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            replace(presets.plain(), **wrong)


def test_training_takes_a_configuration_and_no_name_of_one(faces: Path, tmp_path: Path) -> None:
    for wrong in ("best", presets.best, None):
        with pytest.raises(TypeError, match=r"config must be a TrainConfig, such as presets\.best\(\), not"):
            train(wrong, faces, tmp_path / "run")  # type: ignore[arg-type]


def test_a_thread_may_train(faces: Path, tmp_path: Path, small: TrainConfig) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, replace(small, epochs=1), faces, tmp_path / "run").result()
    assert VAE.from_pretrained(tmp_path / "run").attributes


def test_latents_may_be_reversed_and_edits_are_a_mapping(vae: VAE, images: np.ndarray) -> None:
    latents = vae.encode(images)
    np.testing.assert_array_equal(vae.decode(latents[::-1]), vae.decode(latents)[::-1])
    for wrong in ("Smiling", ["Smiling"], [("Smiling", 1.0)]):
        with pytest.raises(TypeError, match=r"edits must be strengths by attribute, for example \{'Smiling': 1\.5\}"):
            vae.edit(images, wrong)  # type: ignore[arg-type]
