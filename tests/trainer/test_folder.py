import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data import load_data, read_index
from trainer.data.index import split_by_name
from trainer.errors import DataError


def fill(folder: Path, names: list[str]) -> Path:
    """Images whose red value tells which is which."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20), (number, 0, 0)).save(path)
    return folder


def test_images_are_found_at_any_depth_and_sorted(tmp_path: Path) -> None:
    names = [f"{number:02d}.png" for number in range(20)]
    fill(tmp_path, ["b/c/2.bmp", "a.JPG", "b/1.tiff", "b/Ü n.webp", *names])
    for other in ("notes.txt", "b/list.csv", ".hidden.png", ".git/x.png", "._a.JPG", "packed/old.npy"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"not an image")
    data = load_data(tmp_path, 16, 0)
    assert data.index.files == (*names, "a.JPG", "b/1.tiff", "b/c/2.bmp", "b/Ü n.webp")
    assert data.images.shape == (24, 16, 16, 3)
    assert [int(image[0, 0, 0]) for image in data.images[:20]] == list(range(4, 24))
    assert Image.open(data.index.path(22)).getpixel((0, 0)) == (0, 0, 0)
    assert data.index.attributes == ()
    assert data.index.labels.shape == (24, 0)
    assert data.index.layout == "plain folder of images"


@pytest.mark.parametrize("count", [20, 21, 100, 5000])
def test_about_a_twentieth_is_held_out_in_each_split(count: int) -> None:
    splits = split_by_name([f"face{number}.jpg" for number in range(count)])
    train, val, test = np.bincount(splits)
    assert val == test == max(1, round(count / 20))
    assert train + val + test == count


def test_a_split_depends_on_names_alone() -> None:
    names = [f"face{number}.jpg" for number in range(1000)]
    splits = dict(zip(names, split_by_name(names), strict=True))
    again = dict(zip(names[::-1], split_by_name(names[::-1]), strict=True))
    assert again == splits
    # What is drawn by a hash is not the order of the names.
    assert 0.03 < np.mean([splits[name] == 1 for name in names[:500]]) < 0.07
    more = names + [f"more{number}.jpg" for number in range(50)]
    grown = dict(zip(more, split_by_name(more), strict=True))
    assert sum(grown[name] != splits[name] for name in names) <= 10


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], r"holds no images; give a folder of images \(.*png.*\)"),
        ([f"{number}.png" for number in range(19)], r"holds 19 image\(s\); add more, at least 20"),
    ],
)
def test_too_few_images_are_refused_with_the_mend(tmp_path: Path, names: list[str], said: str) -> None:
    fill(tmp_path, names)
    (tmp_path / "readme.txt").touch()
    with pytest.raises(DataError, match=said):
        read_index(tmp_path)


def test_links_to_folders_are_not_followed_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = fill(tmp_path / "photos", [f"{number}.png" for number in range(20)])
    (photos / "more").symlink_to(fill(tmp_path / "elsewhere", ["a.png"]))
    assert len(read_index(photos).files) == 20
    assert f"{photos}/more is a link to a folder, which is not followed; copy the folder there" in caplog.text


def test_links_to_images_are_images_and_links_to_nothing_can_be_left_out(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", [f"{number}.png" for number in range(20)])
    (photos / "link.png").symlink_to(fill(tmp_path / "elsewhere", ["a.png"]) / "a.png")
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read \(No such file or directory\).*--skip-damaged 1"):
        load_data(photos, 16, 0)
    data = load_data(photos, 16, 0, skip_damaged=1)
    assert data.index.left_out == ("gone.png cannot be read (No such file or directory)",)
    assert data.index.splits[data.index.files.index("link.png")] >= 0


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, [f"a/{number}.png" for number in range(30)])
    listing = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root, too, may run this test
    with pytest.raises(DataError, match=rf"{tmp_path}/a cannot be read \(Permission denied\); make it readable"):
        read_index(tmp_path)
