"""A small data set of procedural faces, and the smallest sensible configuration."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.config import ModelConfig, TrainConfig
from trainer.data import FaceData, load_data
from trainer.evaluation import charts
from trainer.faces import write_faces
from trainer.training import train

SMALL = TrainConfig(
    preset="plain",
    model=ModelConfig(image_size=32, latent_dim=16, channels=(16, 16, 32, 32, 32)),
    epochs=3,
    batch_size=32,
    lr=5e-3,
    schedule="one-cycle",
    kl_weight=1e-6,
    taps=(),
    precision="fp32",
    log_every=1,
)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 faces: 160 train, 20 val, 20 test. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_faces(folder, 200, seed=7, workers=1)
    return folder


@pytest.fixture
def broken(faces: Path, tmp_path: Path) -> Path:
    """A copy of the faces that a test may damage."""
    return Path(shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns("packed")))


@pytest.fixture(scope="session")
def data(faces: Path) -> FaceData:
    """The faces, packed at 32 pixels."""
    return load_data(faces, 32, 148)


@pytest.fixture
def small() -> TrainConfig:
    """A configuration that trains in a second."""
    return replace(SMALL)


@pytest.fixture(scope="session")
def trained(data: FaceData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch on the faces. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    train(replace(SMALL, epochs=1), data, folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty hub cache and a network that refuses."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of few pixels, for tests that look at none of them."""
    monkeypatch.setitem(charts._STYLE, "figure.dpi", 40)
