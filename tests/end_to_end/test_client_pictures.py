"""What the command line makes of several strengths and steps, and of pipes; and where it finds a server."""

import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from bundles import mix_directions
from PIL import Image, ImageSequence
from servers import ROOT, ServerProcess, environment_without_torch, server_of
from tiny_model import IMAGE_SIZE, images_of, latents_of, random_images, tiny_directions

from engine.client import Client
from engine.client.cli.outputs import PictureFormat, UsageError, grid, picture

STEP = IMAGE_SIZE + 2


def run(
    target: str,
    folder: Path,
    *arguments: str | Path,
    given: bytes = b"",
    stdout: int = subprocess.PIPE,
    **variables: str,
) -> "subprocess.CompletedProcess[bytes]":
    command, *rest = map(str, arguments)
    return subprocess.run(
        [sys.executable, "-m", "engine.client", command, "--target", target, *rest],
        cwd=ROOT,
        env={**environment_without_torch(folder / "site"), **variables},
        input=given,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


def check(result: "subprocess.CompletedProcess[bytes]") -> bytes:
    assert result.returncode == 0, result.stderr.decode()
    return bytes(result.stdout)


@pytest.fixture
def face(tmp_path: Path) -> Path:
    """A picture of the model's own size."""
    path = tmp_path / "face.png"
    Image.fromarray(random_images(1, seed=5)[0]).save(path)
    return path


def edited(path: Path, **strengths: float) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    step = tiny_directions().move(list(strengths.items())).step
    (image,) = images_of(latents_of(np.asarray(Image.open(path))[np.newaxis]) + step)
    return np.asarray(image, np.uint8)


def frames(file: Path | BytesIO) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    with Image.open(file) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def test_two_ranges_of_strengths_make_a_grid(server: ServerProcess, face: Path, tmp_path: Path) -> None:
    ranges = ["--set", "Smiling=-2:2:3", "--set", "Male=1", "--set", "Eyeglasses=0:1:2"]
    assert check(run(server.target, tmp_path, "edit", *ranges, face, tmp_path / "grid.png")).startswith(b"wrote ")
    rows = [edited(face, Smiling=smiling, Male=1, Eyeglasses=glasses) for smiling in (-2, 0, 2) for glasses in (0, 1)]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid(np.stack(rows), 2))


def test_a_range_for_each_picture_of_a_folder(server: ServerProcess, face: Path, tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    for name in ("one.png", "two.png"):
        (album / name).write_bytes(face.read_bytes())
    options = ["--set", "Smiling=-1:1:5", "--format", "WEBP"]
    assert check(run(server.target, tmp_path, "edit", *options, album, tmp_path / "out")).startswith(b"wrote 2 files")
    for name in ("one.webp", "two.webp"):
        assert len(frames(tmp_path / "out" / name)) == 8  # there, and back


def test_a_walk_moves_in_a_gif_and_a_webp(server: ServerProcess, face: Path, tmp_path: Path) -> None:
    flat = np.stack([np.full((IMAGE_SIZE, IMAGE_SIZE, 3), level, np.uint8) for level in (0, 200)])
    for name, images in (("start.npy", flat), ("end.npy", flat[::-1])):
        np.save(tmp_path / name, latents_of(images))
    for name in ("walk.gif", "walk.webp"):
        walk = ("interpolate", "--steps", "3", tmp_path / "start.npy", tmp_path / "end.npy", tmp_path / name)
        check(run(server.target, tmp_path, *walk))
        shown = frames(tmp_path / name)
        assert [frame.shape for frame in shown] == [(STEP + IMAGE_SIZE, IMAGE_SIZE, 3)] * 4
        for frame, upper in zip(shown, (0, 100, 200, 100), strict=True):
            assert np.abs(frame[:4].astype(int) - upper).max() < 12, "a palette and compression take a little"
            assert np.abs(frame[-4:].astype(int) - (200 - upper)).max() < 12
    check(run(server.target, tmp_path, "edit", "--set", "Smiling=0:9:4", face, tmp_path / "smile.gif"))
    assert len(frames(tmp_path / "smile.gif")) == 6
    check(run(server.target, tmp_path, "sample", "--count", "1", tmp_path / "one.gif"))
    assert len(frames(tmp_path / "one.gif")) == 1


def test_pipes_on_both_sides(server: ServerProcess, face: Path, tmp_path: Path) -> None:
    picture = face.read_bytes()
    smiling = check(run(server.target, tmp_path, "edit", "--set", "Smiling=3", "-", "-", given=picture))
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(smiling))), edited(face, Smiling=3))
    jpeg = check(run(server.target, tmp_path, "edit", "--set", "Smiling=0", "--format", "JPEG", face, "-"))
    assert Image.open(BytesIO(jpeg)).format == "JPEG"
    check(run(server.target, tmp_path, "edit", "--set", "Smiling=0", "-", f"{tmp_path}/out/", given=picture))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["stdin.png"]

    latents = check(run(server.target, tmp_path, "encode", "-", "-", given=picture))
    np.testing.assert_array_equal(np.load(BytesIO(latents)), latents_of(np.asarray(Image.open(face))[np.newaxis]))
    decoded = check(run(server.target, tmp_path, "decode", "-", "-", given=latents))
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(decoded))), np.asarray(Image.open(face)))
    walks = [
        check(run(server.target, tmp_path, "interpolate", "-", face, "-", given=end)) for end in (picture, latents)
    ]
    assert walks[0] == walks[1]
    assert not (ROOT / "-").exists()


def test_a_picture_is_not_written_to_a_terminal(server: ServerProcess, tmp_path: Path) -> None:
    mine, theirs = pty.openpty()
    try:
        result = run(server.target, tmp_path, "sample", "--count", "1", "-", stdout=theirs)
    finally:
        os.close(mine)
        os.close(theirs)
    assert result.returncode == 2
    assert b"error: - as OUT: stdout is a terminal; give it a file or a command: ... - > face.png" in result.stderr


@pytest.mark.parametrize("command", ["sample -", "info"])
def test_a_full_disk_behind_stdout_is_said(server: ServerProcess, tmp_path: Path, command: str) -> None:
    with Path("/dev/full").open("wb") as full:
        result = run(server.target, tmp_path, *command.split(), stdout=full.fileno())
    assert (result.returncode, result.stderr) == (2, b"error: stdout can't be used: no space left on device\n")


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("info >&-", 0, b""),
        ("sample --count 1 - >&-", 0, b""),
        ("edit --set Smiling=1 - out <&-", 2, b"error: stdin is empty; send a picture\n"),
        ("edit --set Smiling=1 - out 0>>/dev/null", 2, b"error: stdin can't be used: bad file descriptor\n"),
    ],
)
def test_standard_streams_may_be_closed(server: ServerProcess, line: str, code: int, said: bytes) -> None:
    command, rest = line.split(maxsplit=1)
    words = f"exec {sys.executable} -m engine.client {command} --target {server.target} {rest}"
    result = subprocess.run(["sh", "-c", words], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (code, said)
    assert not (ROOT / "out").exists()


def test_what_was_written_is_said_where_its_name_is_no_utf8(server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.png")
    said = check(run(server.target, tmp_path, "sample", path, PYTHONIOENCODING="utf-8:strict"))
    assert said.decode() == f"wrote {tmp_path}/\\udcff.png\n"
    assert path.exists()


def test_a_name_may_be_as_long_as_the_disk_allows(server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / f"{251 * 'a'}.png"
    check(run(server.target, tmp_path, "sample", "--count", "1", path))
    assert path in tmp_path.iterdir()
    assert not [*tmp_path.glob(".*")]


def test_this_machine_is_reached_past_a_proxy(server: ServerProcess, tmp_path: Path) -> None:
    port = server.target.rpartition(":")[2]
    for host in ("localhost", "127.0.0.1"):
        assert check(run(f"{host}:{port}", tmp_path, "health", http_proxy="http://127.0.0.1:9")) == b"SERVING\n"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room in the 107 bytes of a socket's."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_unix_socket_and_edits_that_keep_leaves_nothing_of(tiny_bundle: Path, tmp_path: Path, short: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, short / "bundle")
    mix_directions(bundle)
    where = f"unix:{short}/engine.sock"
    with server_of(bundle, tmp_path, "--host", where) as server:
        assert server.target == where
        kept = ["--keep", "Smiling", "--keep", "Eyeglasses"]
        Image.fromarray(random_images(1, seed=5)[0]).save(short / "face.png")
        picture = (short / "face.png").read_bytes()
        refused = run(where, tmp_path, "edit", "--set", "Male=1.5", *kept, short / "face.png", short / "out.png")
        assert refused.returncode == 2
        assert b"edits[0]: nothing is left of 'Male' when Eyeglasses, Smiling must stay" in refused.stderr
        assert not (short / "out.png").exists()
        check(run(where, tmp_path, "edit", "--set", "Male=1.5", *kept[:2], short / "face.png", short / "out.png"))
        with Client(where) as client:
            expected = client.edit([picture], {"Male": 1.5}, keep=["Smiling"])[0]
        np.testing.assert_array_equal(np.asarray(Image.open(short / "out.png")), expected)


@pytest.mark.parametrize(("file_format", "walks"), [("WEBP", 1639), ("JPEG", 6551), ("GIF", 6554)])
def test_a_picture_that_a_format_has_no_room_for_is_refused(file_format: PictureFormat, walks: int) -> None:
    faces = np.zeros((walks, 1, 8, 8, 3), np.uint8)
    with pytest.raises(
        UsageError, match=rf"the picture would have 8x{10 * walks - 2} pixels, and a {file_format} file"
    ):
        picture(faces, 1, file_format)
    with Image.open(BytesIO(picture(faces[1:], 1, file_format))) as image:
        assert image.size == (8, 10 * walks - 12)
