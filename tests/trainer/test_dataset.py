import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from engine.images import prepare
from trainer import dataset
from trainer.errors import DataError
from trainer.faces import ATTRIBUTES


def edit_lines(path: Path, change: dict[int, str | None]) -> None:
    """Replaces lines by number (from 1); None removes."""
    lines: list[str | None] = list(path.read_text().splitlines())
    for number, text in change.items():
        lines[number - 1] = text
    path.write_text("\n".join(line for line in lines if line is not None) + "\n")


def test_labels_splits_and_images_line_up(faces: Path, data: dataset.FaceData) -> None:
    assert data.index.attributes == ATTRIBUTES
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [160, 20, 20]
    cells = (faces / dataset.ATTRIBUTES).read_text().splitlines()[2 + 17].split()
    assert data.index.files[17] == cells[0]
    assert data.index.labels[17].tolist() == [cell == "1" for cell in cells[1:]]
    assert data.images.shape == (200, 32, 32, 3)


def test_images_are_prepared_as_in_the_seed_document_and_as_the_server_does(
    faces: Path, data: dataset.FaceData
) -> None:
    seed = Compose([CenterCrop(148), Resize(32)])
    for row in (0, 55, 199):
        image = Image.open(faces / dataset.IMAGES / data.index.files[row])
        assert np.array_equal(data.images[row], np.asarray(seed(image)))
        assert np.array_equal(data.images[row], prepare(image, 32, 148))


def test_without_a_crop_the_whole_image_is_used_as_the_server_does(faces: Path) -> None:
    data = dataset.load(faces, 64, 0)
    image = Image.open(faces / dataset.IMAGES / data.index.files[3])
    assert np.array_equal(data.images[3], prepare(image, 64, None))


def test_images_are_decoded_once_and_mapped_afterwards(broken: Path) -> None:
    first = dataset.load(broken, 32, 148)
    packed = next((broken / "packed").glob("*.npy"))
    written = packed.stat().st_mtime_ns
    again = dataset.load(broken, 32, 148)
    assert packed.stat().st_mtime_ns == written
    assert isinstance(again.images, np.memmap)
    assert again.fingerprint == first.fingerprint


def test_a_changed_image_is_packed_again(broken: Path) -> None:
    first = dataset.load(broken, 32, 148)
    Image.new("RGB", (178, 218), "red").save(broken / dataset.IMAGES / "000005.jpg")
    again = dataset.load(broken, 32, 148)
    assert again.fingerprint != first.fingerprint
    assert again.images[4, 16, 16, 0] > 200
    assert again.images[4, 16, 16, 1] < 50


def test_a_read_only_data_set_is_packed_in_the_cache(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, too, may run this test
    dataset.load(broken, 32, 148)
    assert not (broken / "packed").exists()
    assert list((tmp_path / "cache" / "dfc-vae" / "packed").glob("*.npy"))


def test_a_folder_that_holds_celeba_is_accepted(broken: Path) -> None:
    (broken.parent / "outer").mkdir()
    broken.rename(broken.parent / "outer" / "celeba")
    assert len(dataset.read_index(broken.parent / "outer").files) == 200


def test_absent_attributes_are_fine(broken: Path) -> None:
    path = broken / dataset.ATTRIBUTES
    rows = path.read_text().splitlines()
    two = [rows[0], "Smiling Eyeglasses", *(" ".join(row.split()[:3]) for row in rows[2:])]
    path.write_text("\n".join(two) + "\n")
    index = dataset.read_index(broken)
    assert index.attributes == ("Smiling", "Eyeglasses")
    assert index.labels.shape == (200, 2)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({10: "000008.jpg 1 -1 1"}, ["line 10", "000008.jpg", "3 values", f"{len(ATTRIBUTES)} attributes"]),
        ({12: "000010.jpg" + " 0" * len(ATTRIBUTES)}, ["line 12", "'0' is neither 1 nor -1"]),
        ({202: None}, ["announces 200", "199 rows"]),
        ({1: "many"}, ["line 1", "'many'"]),
        ({2: "Smiling Smiling"}, ["line 2", "each once"]),
        (dict.fromkeys(range(1, 203)), ["1 line(s)"]),
    ],
)
def test_a_malformed_attribute_list_is_named_with_its_line(
    broken: Path, lines: dict[int, str | None], said: list[str]
) -> None:
    edit_lines(broken / dataset.ATTRIBUTES, lines)
    with pytest.raises(DataError) as caught:
        dataset.load(broken, 32, 148)
    for words in [dataset.ATTRIBUTES, *said]:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({5: "000005.jpg 3"}, ["line 5", "000005.jpg 3"]),
        ({5: "000005.jpg"}, ["line 5"]),
        ({5: None}, ["000005.jpg", "no split"]),
        ({number: f"{number:06d}.jpg 0" for number in range(161, 201)}, ["val split"]),
    ],
)
def test_a_malformed_partition_is_named_with_its_line(
    broken: Path, lines: dict[int, str | None], said: list[str]
) -> None:
    edit_lines(broken / dataset.PARTITION, lines)
    with pytest.raises(DataError) as caught:
        dataset.load(broken, 32, 148)
    for words in [dataset.PARTITION, *said]:
        assert words in str(caught.value)


def test_a_missing_image_is_named_with_the_line_that_lists_it(broken: Path) -> None:
    (broken / dataset.IMAGES / "000042.jpg").unlink()
    with pytest.raises(DataError, match=r"000042\.jpg is missing.*line 44"):
        dataset.load(broken, 32, 148)


@pytest.mark.parametrize("size", [0, 1000])
def test_a_truncated_image_is_named_and_nothing_is_left_behind(broken: Path, size: int) -> None:
    path = broken / dataset.IMAGES / "000031.jpg"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"000031\.jpg cannot be decoded"):
        dataset.load(broken, 32, 148)
    assert not list((broken / "packed").iterdir())


def test_an_image_smaller_than_the_crop_is_named(broken: Path) -> None:
    Image.new("RGB", (64, 64)).save(broken / dataset.IMAGES / "000002.jpg")
    with pytest.raises(DataError, match=r"000002\.jpg is 64x64, smaller than the crop of 148; use --crop 0"):
        dataset.load(broken, 32, 148)


@pytest.mark.parametrize("name", [dataset.ATTRIBUTES, dataset.PARTITION])
def test_a_missing_list_is_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        dataset.load(broken, 32, 148)


def test_a_folder_of_something_else_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"python -m trainer faces"):
        dataset.load(tmp_path, 32, 148)
