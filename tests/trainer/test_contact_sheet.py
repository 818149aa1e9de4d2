"""Framing at the command line: what --dry-run shows, what is logged, and what --align does."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from portraits import GROUND, face, scene

from framing import CELEBA_SOURCE, Aligner, Frame, prepare
from trainer.__main__ import main
from trainer.config import TrainConfig
from trainer.data import load_data, read_index
from trainer.errors import DataError

FRAME = Frame.of(64, 148, CELEBA_SOURCE)
STEP = 64 + 4  # of the sheet's images


def photos(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """One face in pictures of these sizes, in turn."""
    folder.mkdir()
    for number in range(24):
        size = sizes[number % len(sizes)]
        Image.fromarray(face(0)).resize(size).save(folder / f"{number:02d}.png")
    return folder


def dry_run(data: Path, out: Path, *flags: str) -> int:
    return main(["train", "--preset", "plain", "--data", str(data), "--out", str(out), "--dry-run", *flags])


def test_a_dry_run_shows_what_the_network_will_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = photos(tmp_path / "photos", [(178, 218), (356, 436), (64, 64)])
    assert dry_run(data, tmp_path / "run") == 0
    path = Path(json.loads(capsys.readouterr().out)["plan"]["contact_sheet"])
    assert path == tmp_path / "run-contact-sheet.png"
    assert not (tmp_path / "run").exists()
    sheet = np.asarray(Image.open(path))
    index = read_index(data)
    rows = index.rows("train")
    assert sheet.shape == (3 * STEP + 4, 8 * STEP + 4, 3)
    for number, row in enumerate(rows):
        top, left = number // 8 * STEP + 4, number % 8 * STEP + 4
        expected = prepare(Image.open(index.path(row)), FRAME)
        np.testing.assert_array_equal(sheet[top : top + 64, left : left + 64], expected)
    assert dry_run(data, tmp_path / "run", "--crop", "0") == 0  # its own sheet it replaces
    assert not np.array_equal(np.asarray(Image.open(path)), sheet)


@pytest.mark.parametrize("content", ["text", "picture"])
def test_somebodys_file_is_not_replaced_by_a_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    data, path = photos(tmp_path / "photos", [(178, 218)]), tmp_path / "run-contact-sheet.png"
    if content == "text":
        path.write_text("mine")
    else:
        Image.new("RGB", (9, 9)).save(path)
    before = path.read_bytes()
    assert dry_run(data, tmp_path / "run") == 2
    assert "run-contact-sheet.png is no contact sheet and would be replaced by one; move it" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_images_that_cannot_be_used_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = photos(tmp_path / "photos", [(178, 218)])
    row = read_index(data).rows("train")[3]
    damaged = read_index(data).path(row)
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert dry_run(data, tmp_path / "run") == 0
    assert f"not on the contact sheet: {damaged} cannot be decoded" in caplog.text
    assert Image.open(tmp_path / "run-contact-sheet.png").size == (8 * STEP + 4, 3 * STEP + 4)


def test_how_many_pictures_were_brought_to_the_frame_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = photos(tmp_path / "photos", [(178, 218), (356, 436), (64, 64)])
    images = load_data(data, 64, 148).images
    assert "8 of 24 pictures are not 178x218 and were brought to that frame by their size" in caplog.text
    assert np.abs(images[0].astype(int) - images[1]).mean() < 4, "the same face, enlarged"
    caplog.clear()
    load_data(photos(tmp_path / "same", [(178, 218), (64, 64)]), 64, 148)
    assert "brought" not in caplog.text


def test_aligning_is_a_data_option(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        scene((3, 5)[number % 2], 1.4, 20, (0.45, 0.55), side=320).save(folder / f"{number:02d}.png")
    group = scene(5, 2.5, at=(0.7, 0.5))
    group.paste(scene(3, 1.5, side=260), (0, 300))
    group.save(folder / "04.png")
    plain, aligned = load_data(folder, 64, 148), load_data(folder, 64, 148, align=True)
    assert plain.fingerprint != aligned.fingerprint
    assert "1 of 20 pictures show several faces, the largest is taken: 04.png (2)" in caplog.text
    assert "20 of 20 pictures were aligned; 0 were framed already" in caplog.text
    expected = prepare(Aligner(FRAME).align(Image.open(folder / "00.png")).image, FRAME)
    np.testing.assert_array_equal(aligned.images[0], expected)
    Image.new("RGB", (320, 320), GROUND).save(folder / "07.png")
    with pytest.raises(DataError, match=r"07\.png shows no face that can be found; .*delete it"):
        load_data(folder, 64, 148, align=True)


def test_a_configuration_of_an_older_version_is_of_celebas_frame() -> None:
    values = TrainConfig(source=(300, 400), align=False).to_json()
    assert TrainConfig.from_json(values).frame == Frame(64, 148, (300, 400))
    del values["source"], values["align"]
    assert TrainConfig.from_json(values).frame == FRAME
