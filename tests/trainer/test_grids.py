from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.contact_sheet import grid
from trainer.evaluation import charts, grids


def numbered(count: int, size: int = 4) -> np.ndarray:
    """Images (count, size, size, 3), each of one level, its number."""
    return np.zeros((count, size, size, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]


def test_a_grid_puts_every_image_in_its_place() -> None:
    sheet = grid([numbered(3), numbered(3) + 10], gap=1)
    assert sheet.shape == (11, 16, 3)
    assert sheet[1, 6, 0] == 1
    assert sheet[6, 11, 0] == 12
    assert sheet[0, 0, 0] == 255


def test_a_map_puts_faces_at_their_places_and_none_on_another() -> None:
    places = np.array([[0, 0], [9, 0], [0, 9], [9, 9], [9, 9]], np.float32)
    sheet = grids.face_map(places, numbered(5) + 1, cells=10, thumbnail=4)
    assert sheet.shape == (40, 40, 3)
    found = {int(level): np.argwhere(sheet[:, :, 0] == level).mean(0) // 4 for level in (1, 2, 3, 4, 5)}
    assert found[1].tolist() == [0, 0]
    assert found[2].tolist() == [0, 9]  # row, column
    assert found[3].tolist() == [9, 0]
    assert found[4].tolist() == [9, 9]
    assert np.abs(found[5] - 9).max() == 1  # beside the one that came first


@pytest.mark.parametrize("names", [("Bald", "Hat"), tuple(f"A_long_attribute_{number}" for number in range(40))])
def test_heat_maps_of_any_size_are_written(tmp_path: Path, names: "tuple[str, ...]") -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (len(names), len(names)))
    charts.save_heat_map(
        tmp_path / "map.png", "A title", values, rows=names, columns=names, unit="correlation", limit=1.0
    )
    with Image.open(tmp_path / "map.png") as image:
        assert min(image.size) > 300
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels[..., 0] - pixels[..., 2] > 60).any()  # red
    assert (pixels[..., 2] - pixels[..., 0] > 60).any()  # blue


def test_few_latent_dimensions_and_few_images_can_be_drawn(tmp_path: Path) -> None:
    mu = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    charts.save_encoding_distribution(tmp_path / "encoding.png", mu, mu)
    charts.save_kl_bars(tmp_path / "kl.png", [0.0, 1.0, 2.0], 2)
    charts.save_accuracy_bars(tmp_path / "accuracy.png", "title", {"Bald": 0.3}, {"Bald": 0.4})
    grids.save_reconstructions(tmp_path / "pairs.png", numbered(3, 32), numbered(3, 32))
    grids.save_grid(tmp_path / "strips.png", "title", [numbered(2, 32)], across=["a", "b"])
    for name in ("encoding", "kl", "accuracy", "pairs", "strips"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 50
