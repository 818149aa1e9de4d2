"""The product's core loop: a finished run learns a new edit from a CSV, and the server makes it, without training."""

from pathlib import Path

import numpy as np
import pytest
from builds import plain, silent
from runs import ATTRIBUTES, smooth_images, write_run
from servers import server_of

from engine.client import Client
from engine.latents import Directions
from export.build_engines import build
from trainer import VAE
from trainer.__main__ import main
from trainer.config import TrainConfig
from trainer.run_folder import save_config


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """80 images without labels, and own.csv, which says of half of them that they are bright."""
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    lines = ["file,Bright"]
    for row, image in enumerate(smooth_images(80, 64)):
        bright = row % 2
        Image.fromarray(image // 2 + 127 * bright).save(folder / f"{row}.png")
        lines.append(f"{row}.png,{bright}")
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_new_attribute_is_learnt_exported_and_served(data: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", samples=4)
    config = TrainConfig(preset="plain", model=VAE.from_pretrained(run).config.model, taps=(), crop=0)
    save_config(run, config, {"data": str(data), "images": {"train": 72}, "steps": 7})
    assert main(["directions", str(run), "--data", str(data), "--labels", str(tmp_path / "own.csv")]) == 0
    build(plain(run=run, out=tmp_path / "bundle", max_batch=4, threads=1), silent)
    images = smooth_images(3, 64)
    with server_of(tmp_path / "bundle", tmp_path) as server, Client(server.target) as client:
        assert [(one.name, one.kind) for one in client.model().attributes] == [
            *zip(ATTRIBUTES, ("mean", "adjusted", "svm"), strict=True),
            ("Bright", "mean"),
        ]
        edited, mu = client.edit_both(images, {"Bright": 1.5})
        drawn = client.sample(2, seed=5)
    vae = VAE.from_pretrained(run)
    direction = Directions.load(run / "directions.safetensors")["Bright"]
    np.testing.assert_allclose(mu, vae.encode(images) + 1.5 * direction, atol=1e-3)
    assert np.abs(edited.astype(int) - vae.edit(images, {"Bright": 1.5})).max() <= 1
    assert np.abs(drawn.astype(int) - vae.sample(2, seed=5)).max() <= 1
