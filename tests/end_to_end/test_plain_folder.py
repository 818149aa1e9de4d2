"""Images without any labels, at 128 pixels: from a folder to a server that encodes, decodes and edits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import smooth_images
from servers import server_of

from engine.client import Client, ClientError
from engine.images import encode_file
from engine.latents import Directions
from export.build_engines import BuildConfig, build
from trainer.__main__ import main

SIZE = 128


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What export makes of a short training on forty pictures that are square already."""
    folder = tmp_path_factory.mktemp("plain")
    for number, picture in enumerate(smooth_images(40, 140)):
        path = folder / "photos" / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    sizes = ["--image-size", str(SIZE), "--latent-dim", "6", "--channels", *["4"] * 5]
    where = ["--data", str(folder / "photos"), "--crop", "0", "--out", str(folder / "run")]
    assert main(["train", "--preset", "plain", *where, *sizes, "--epochs", "2", "--batch-size", "16"]) == 0
    directions = Directions.load(folder / "run" / "directions.safetensors")
    assert directions.names == ()
    assert directions.vectors.shape == (0, 6)
    return build(BuildConfig(run=folder / "run", out=folder / "bundle", max_batch=4, threads=1), lambda line: None)


def test_a_bundle_without_attributes_is_served(bundle: Path, tmp_path: Path) -> None:
    file = encode_file(smooth_images(1, 150)[0], "JPEG")
    with server_of(bundle, tmp_path) as server, Client(server.target) as client:
        assert client.model().attributes == ()
        mu = client.encode([file]).mu
        assert mu.shape == (1, 6)
        assert client.decode(mu).shape == (1, SIZE, SIZE, 3)
        direction = np.arange(6, dtype=np.float32)
        images, latents = client.edit_both([file], [(direction, -2.0)])
        np.testing.assert_allclose(latents, mu - 2 * direction, rtol=1e-6)
        # The edit is one graph from end to end, whose last bits need not be those of the decoder alone.
        np.testing.assert_allclose(images.astype(int), client.decode(latents), rtol=0, atol=1)
        with pytest.raises(ClientError, match="unknown attribute 'Smiling'; this model has: none at all"):
            client.edit([file], {"Smiling": 1.0})
