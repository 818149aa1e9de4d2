"""Pictures of all sizes at a real server: framed as in training, or refused; and faces that the client aligns."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import write_tiny_bundle
from fuzzing.files import file_of
from PIL import Image
from portraits import GROUND, face, scene
from servers import ROOT, ServerProcess, run_python, server_of
from tiny_model import IMAGE_SIZE

from engine.client import Client, ClientError
from framing import CELEBA_SOURCE, Aligner, Frame, prepare
from trainer.data import pixels

FRAME = Frame.of(IMAGE_SIZE, 148, CELEBA_SOURCE)


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of a model that was trained on CelebA's frame; its edits of nothing give back what it saw."""
    folder = tmp_path_factory.mktemp("framed")
    bundle = write_tiny_bundle(folder / "bundle", 148, CELEBA_SOURCE)
    with server_of(bundle, folder) as process:
        yield process


def client(server: ServerProcess, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """The command line where everything is installed."""
    command = [sys.executable, "-m", "engine.client", *map(str, arguments), "--target", server.target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_server_says_its_frame(framed: ServerProcess, server: ServerProcess) -> None:
    with Client(framed.target) as asked:
        assert asked.model().frame == FRAME
    with Client(server.target) as asked:  # of a bundle that says no more than its crop
        assert asked.model().frame == Frame(IMAGE_SIZE, 12)


@pytest.mark.parametrize("size", [(178, 218), (356, 436), (640, 480), (300, 900)])
def test_a_picture_is_served_as_it_would_be_trained_on(
    framed: ServerProcess, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(face(0)).resize(size).save(path)
    with Client(framed.target) as asked:
        seen = asked.edit([path.read_bytes()], {"Male": 0})[0]
    np.testing.assert_array_equal(seen, pixels.read(path, FRAME).image)


def test_an_edit_can_be_edited_again(framed: ServerProcess, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    Image.fromarray(face(0)).save(tmp_path / "face.png")
    for source, edited in ((tmp_path / "face.png", first), (first, second)):
        result = client(framed, "edit", "--set", "Smiling=0", source, edited)
        assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(second)), np.asarray(Image.open(first)))
    assert Image.open(second).size == (IMAGE_SIZE, IMAGE_SIZE)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((100, 120), r"is 100x120 pixels, smaller than the crop of 148 .* or one of 8x8 that is framed already"),
        ((800, 190), r"is 800x190 pixels, too far from square; cut the face out first"),
    ],
)
def test_what_cannot_be_framed_is_refused(framed: ServerProcess, size: tuple[int, int], said: str) -> None:
    with Client(framed.target) as asked, pytest.raises(ClientError, match=rf"INVALID_ARGUMENT: .*files\[0\] {said}"):
        asked.encode([file_of(Image.new("RGB", size))])


def test_the_client_aligns_faces_and_says_what_it_cannot_align(framed: ServerProcess, tmp_path: Path) -> None:
    turned = scene(3, 2, 25, (0.4, 0.6))
    group = scene(5, 2.5, at=(0.7, 0.5))
    group.paste(scene(3, 1.5, side=260), (0, 300))
    for name, picture in {"turned": turned, "group": group, "wall": Image.new("RGB", (400, 300), GROUND)}.items():
        picture.save(tmp_path / f"{name}.png")
    names = [tmp_path / f"{name}.png" for name in ("wall", "turned", "group", "torn", "text")]
    names[3].write_bytes(names[1].read_bytes()[:2000])
    names[4].write_text("no image")
    result = client(framed, "edit", "--align", "--set", "Smiling=0", *names, tmp_path / "out")
    assert result.returncode == 2
    assert f"error: {names[0]} shows no face that can be found" in result.stderr
    assert f"error: {names[3]} is damaged or too large" in result.stderr
    assert f"error: {names[4]} is no image" in result.stderr
    assert "Traceback" not in result.stderr
    assert f"note: {names[2]} shows 2 faces; the largest is taken" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["group.png", "turned.png"]
    expected = prepare(Aligner(FRAME).align(turned).image, FRAME)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "turned.png")), expected)


def test_the_client_notes_once_that_a_photo_is_not_aligned(framed: ServerProcess, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(face(0))
    upright.save(tmp_path / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    for name in ("c", "d"):
        upright.resize((300, 400)).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    result = client(framed, "edit", "--set", "Smiling=0", *paths, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("note: ") == result.stderr.count("--align finds it") == 1
    assert ".png is 300x400 pixels, the model knows faces in 178x218: the middle is taken" in result.stderr
    result = client(framed, "edit", "--set", "Smiling=0", *paths[:2], tmp_path / "again")
    assert result.returncode == 0, result.stderr
    assert "note" not in result.stderr


def test_without_the_extra_the_client_says_what_to_install(framed: ServerProcess, tmp_path: Path) -> None:
    arguments = ["encode", "--align", "x.png", str(tmp_path / "z.npy"), "--target", framed.target]
    result = run_python(["-m", "engine.client", *arguments], tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --align needs onnx and onnxruntime")
    assert "pip install 'dfc-vae[align,cpu]'" in result.stderr


def test_a_model_without_landmarks_cannot_be_aligned_for(server: ServerProcess, tmp_path: Path) -> None:
    result = client(server, "encode", "--align", "x.png", tmp_path / "z.npy")
    assert result.returncode == 2
    assert "where eyes and mouth lie in this model's pictures is not known" in result.stderr
