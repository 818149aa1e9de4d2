"""The client's command line against a real server: some commands as processes, most without the time that one takes."""

import contextlib
import io
import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from bundles import reseal, write_tiny_bundle
from PIL import Image
from servers import ServerProcess, run_python, server_of, start_python
from tiny_model import IMAGE_SIZE, LATENT_DIM, images_of, latents_of, random_images, save_directions, tiny_directions

from engine.bundle import DIRECTIONS, MANIFEST, Manifest
from engine.client import Client
from engine.client.__main__ import main
from framing import Frame, prepare

CROP = 12


def write_photo(path: Path, seed: int) -> Path:
    """A photo larger than the model's images; lossless unless its name says otherwise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def prepared(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return prepare(Image.open(path), Frame(IMAGE_SIZE, CROP))


def read(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(path))


def tiles(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], columns: int) -> list[object]:
    """The images of a grid."""
    step = IMAGE_SIZE + 2
    rows = (picture.shape[0] + 2) // step
    assert picture.shape == (rows * step - 2, columns * step - 2, 3)
    corners = [(row * step, column * step) for row in range(rows) for column in range(columns)]
    return [picture[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE] for top, left in corners]


def run(server: ServerProcess, command: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """`python -m engine.client`, in this process and with nothing on stdin."""
    words = [command, "--target", server.target, *map(str, arguments)]
    nothing, said, errors = io.TextIOWrapper(io.BytesIO()), io.StringIO(), io.StringIO()
    with patch("sys.stdin", nothing), contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return subprocess.CompletedProcess(words, code, said.getvalue(), errors.getvalue())


def check(result: "subprocess.CompletedProcess[str]") -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_edit_of_one_file(server: ServerProcess, tmp_path: Path) -> None:
    face, edited = write_photo(tmp_path / "face.jpg", 7), tmp_path / "edited.png"
    where = ["--target", server.target, str(face), str(edited)]
    check(run_python(["-m", "engine.client", "edit", "--set", "Smiling=1.5", "--keep", "Male", *where], tmp_path))
    with Client(server.target) as client:
        expected = client.edit([face.read_bytes()], {"Smiling": 1.5}, keep=["Male"])
    np.testing.assert_array_equal(read(edited), expected[0])
    conditions = ["--with", "Smiling", "--without", "Eyeglasses"]
    for settings, edits in (([], {}), (["--set", "Male=2"], {"Male": 2.0})):
        check(run(server, "edit", "--overwrite", *conditions, *settings, face, edited))
        with Client(server.target) as client:
            expected = client.edit([face.read_bytes()], edits, having=["Smiling"], lacking=["Eyeglasses"])
        np.testing.assert_array_equal(read(edited), expected[0])


def test_names_that_are_alike_or_hold_an_equals_sign(tmp_path: Path) -> None:
    bundle, names = write_tiny_bundle(tmp_path / "bundle"), ("Smiling", "smiling", "Hair=red")
    save_directions(replace(tiny_directions(), names=names), bundle / DIRECTIONS)
    manifest = Manifest.from_json((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(replace(manifest, attributes=names).to_json())
    reseal(bundle)
    face, edited = write_photo(tmp_path / "face.png", 7), tmp_path / "edited.png"
    with server_of(bundle, tmp_path) as server, Client(server.target) as client:
        for name in names:
            check(run(server, "edit", "--overwrite", "--set", f"{name}=1.5", face, edited))
            np.testing.assert_array_equal(read(edited), client.edit([face.read_bytes()], {name: 1.5})[0])


def test_options_may_come_after_the_files_and_among_them(server: ServerProcess, tmp_path: Path) -> None:
    face, edited, latents = write_photo(tmp_path / "face.png", 7), tmp_path / "edited.png", tmp_path / "z.npy"
    other = write_photo(tmp_path / "other.png", 8)
    check(run(server, "edit", face, edited, "--set", "Smiling=0"))
    np.testing.assert_array_equal(read(edited), prepared(face))
    check(run(server, "edit", face, "--set", "Smiling=0", other, "--timeout-s", "50", tmp_path / "out"))
    np.testing.assert_array_equal(read(tmp_path / "out" / "other.png"), prepared(other))
    check(run(server, "encode", face, "--timeout-s", "50", latents))
    np.testing.assert_array_equal(np.load(latents), latents_of(prepared(face)[np.newaxis]))


def test_a_slash_makes_a_folder_where_files_of_other_names_stay(server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "faces.d"
    out.mkdir()
    (out / "002.png").write_text("older")
    said = check(run(server, "sample", "--count", "2", f"{out}/"))
    assert said == f"wrote 2 files to {out}\n"
    assert sorted(file.name for file in out.iterdir()) == ["000.png", "001.png", "002.png"]
    assert read(out / "001.png").shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert (out / "002.png").read_text() == "older"
    check(run(server, "sample", "--count", "1", f"{tmp_path}/new.d/"))
    assert [file.name for file in (tmp_path / "new.d").iterdir()] == ["000.png"]


def test_what_exists_is_replaced_only_if_that_was_asked_for(server: ServerProcess, tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    first, second = (write_photo(album / f"{name}.png", seed) for seed, name in enumerate("ab"))
    latents = tmp_path / "z.npy"
    np.save(latents, latents_of(random_images(2, seed=1)))
    before = {path: path.read_bytes() for path in (first, second, latents)}
    for command in (
        ("edit", "--set", "Smiling=1.5", first, second),  # OUT was forgotten
        ("edit", "--set", "Smiling=1.5", first, second, album),
        ("encode", first, latents),
        ("sample", second),
    ):
        refused = run(server, *map(str, command))
        assert refused.returncode == 2
        assert "exists" in refused.stderr
        assert "give --overwrite to replace it" in refused.stderr
    assert {path: path.read_bytes() for path in before} == before
    check(run(server, "sample", "--count", "2", tmp_path / "new"))
    refused = run(server, "decode", latents, tmp_path / "new")
    assert f"error: {tmp_path / 'new' / '000.png'} exists, and so does another one" in refused.stderr

    assert check(run(server, "edit", "--overwrite", "--set", "Smiling=0", first, second)).startswith("wrote ")
    np.testing.assert_array_equal(read(second), prepared(first))
    check(run(server, "decode", "--overwrite", latents, tmp_path / "new"))
    np.testing.assert_array_equal(read(tmp_path / "new" / "001.png"), random_images(2, seed=1)[1])


def test_a_folder_stands_for_its_images(server: ServerProcess, tmp_path: Path) -> None:
    album, out = tmp_path / "album.d", tmp_path / "out"
    album.mkdir()
    faces = [write_photo(album / name, seed) for seed, name in enumerate(("a.png", "b.PNG", "c.webp"))]
    for other in ("notes.txt", ".hidden.png"):
        (album / other).write_text("no image")
    assert check(run(server, "edit", "--set", "Smiling = 0", album, out)) == f"wrote 3 files to {out}\n"
    assert sorted(file.name for file in out.iterdir()) == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(read(out / "b.png"), prepared(faces[1]))
    again = tmp_path / "again"
    assert check(run(server, "edit", "--set", "Smiling=0", album, faces[0], again)) == f"wrote 3 files to {again}\n"
    check(run(server, "encode", album, tmp_path / "z.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy")[:2], latents_of(np.stack(list(map(prepared, faces[:2])))))


def test_an_edit_of_many_files_goes_past_the_bad_ones(server: ServerProcess, tmp_path: Path) -> None:
    faces = [write_photo(tmp_path / f"face{seed}.png", seed) for seed in range(20)]
    damaged, out = tmp_path / "damaged.png", tmp_path / "out"
    damaged.write_bytes(faces[0].read_bytes()[:100])
    result = run(server, "edit", "--set", "Smiling=0", faces[0], damaged, "absent.png", *faces[1:], out)
    assert result.returncode == 2
    assert f"error: {damaged} is damaged or truncated" in result.stderr
    assert "error: absent.png can't be used: no such file or directory" in result.stderr
    assert result.stdout == f"wrote 20 files to {out}\n"
    assert "/22" not in result.stderr, "no progress bar where stderr is no terminal"
    assert "Traceback" not in result.stderr
    assert sorted(out.iterdir()) == sorted(out / face.name for face in faces)
    for face in faces:
        np.testing.assert_array_equal(read(out / face.name), prepared(face))


def test_an_edit_of_many_files_stops_at_what_is_not_their_fault(server: ServerProcess, tmp_path: Path) -> None:
    faces = [write_photo(tmp_path / f"face{seed}.png", seed) for seed in range(20)]
    result = run(server, "edit", "--set", "Bald=1", *faces, tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.count("error: NOT_FOUND: unknown attribute 'Bald'") == 1
    assert not (tmp_path / "out").exists()


def test_encode_and_decode(server: ServerProcess, tmp_path: Path) -> None:
    faces = [write_photo(tmp_path / f"face{seed}.png", seed) for seed in range(5)]
    latents = tmp_path / "latents.npy"
    check(run(server, "encode", *faces, latents))
    np.testing.assert_array_equal(np.load(latents), latents_of(np.stack([prepared(face) for face in faces])))

    check(run(server, "decode", latents, tmp_path / "grid.png"))
    pictures = tiles(read(tmp_path / "grid.png"), columns=3)
    np.testing.assert_array_equal(pictures[:5], [prepared(face) for face in faces])
    assert np.all(np.asarray(pictures[5]) == 255)

    check(run(server, "decode", latents, tmp_path / "folder"))
    files = sorted((tmp_path / "folder").iterdir())
    assert [file.name for file in files] == [f"00{index}.png" for index in range(5)]
    np.testing.assert_array_equal([read(file) for file in files], [prepared(face) for face in faces])

    np.save(latents, np.load(latents)[3:4])
    check(run(server, "decode", latents, tmp_path / "one.png"))
    np.testing.assert_array_equal(read(tmp_path / "one.png"), prepared(faces[3]))


def test_encode_writes_all_or_nothing(server: ServerProcess, tmp_path: Path) -> None:
    face = write_photo(tmp_path / "face.png", 1)
    result = run(server, "encode", face, "absent.png", tmp_path / "latents.npy")
    assert result.returncode == 2
    assert not (tmp_path / "latents.npy").exists()


def test_interpolate(server: ServerProcess, tmp_path: Path) -> None:
    start, end = (write_photo(tmp_path / f"face{seed}.png", seed) for seed in range(2))
    check(run(server, "interpolate", "--steps", "4", start, end, tmp_path / "walk.png"))
    first, *_, last = tiles(read(tmp_path / "walk.png"), columns=4)
    np.testing.assert_array_equal([first, last], [prepared(start), prepared(end)])

    ends = random_images(2, seed=1), random_images(2, seed=2)
    for name, images in zip(("start.npy", "end.npy"), ends, strict=True):
        np.save(tmp_path / name, latents_of(images))
    paths = tmp_path / "start.npy", tmp_path / "end.npy", tmp_path / "walks"
    check(run(server, "interpolate", "--steps", "3", *paths))
    middle = images_of((latents_of(ends[0]) + latents_of(ends[1])) / np.float32(2))
    expected = np.stack([ends[0], middle, ends[1]], axis=1).reshape(6, IMAGE_SIZE, IMAGE_SIZE, 3)
    files = [read(file) for file in sorted((tmp_path / "walks").iterdir())]
    np.testing.assert_allclose(np.asarray(files, np.float32), expected, atol=1)


def test_sample(server: ServerProcess, tmp_path: Path) -> None:
    options = ["--count", "5", "--seed", "3", "--temperature", "0.5", "--distribution", "standard"]
    options += ["--with", "Smiling", "--with", "Male", "--without", "Eyeglasses"]
    check(run(server, "sample", *options, tmp_path / "faces"))
    with Client(server.target) as client:
        expected = client.sample(
            5, seed=3, temperature=0.5, distribution="standard", having=["Smiling", "Male"], lacking=["Eyeglasses"]
        )
    np.testing.assert_array_equal([read(file) for file in sorted((tmp_path / "faces").iterdir())], expected)


def test_info_and_health(server: ServerProcess, tmp_path: Path) -> None:
    info = json.loads(check(run(server, "info")))
    assert (info["latent_dim"], info["models"]) == (LATENT_DIM, [info["name"]])
    assert list(info["versions"]) == sorted(info["versions"])
    assert check(run(server, "health")) == "SERVING\n"


def test_a_reader_who_has_seen_enough_is_no_error(server: ServerProcess, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = start_python(["-m", "engine.client", "info", "--target", server.target], tmp_path, stdout=writing)
    finally:
        os.close(writing)
    assert (process.communicate()[1], process.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("edit --set Bald=1 IN OUT", "NOT_FOUND: unknown attribute 'Bald'; this model has: Smiling"),
        ("edit --set smile=1 IN --wat OUT", "Unrecognized options: --wat"),
        ("edit --set smile=1 IN OUT", "unknown attribute 'smile'; did you mean 'Smiling'?"),
        ("edit --set Smiling=1 --keep MALE IN OUT", "'MALE'; did you mean 'Male'?"),
        ("edit --set Smiling=1 IN IN -", "2 inputs need a folder to write to, and stdout"),
        ("edit --set Smiling=1 - FOLDER", "error: stdin is empty; send a picture"),
        ("edit --set Smiling=1:2:3 WHOLE OUT", "whole.npy is not a JPEG, PNG or WebP file"),
        ("interpolate IN FILE OUT", "file is not a JPEG, PNG or WebP file"),
        ("interpolate FILE IN OUT", "file is not a JPEG, PNG or WebP file"),
        ("edit --set Smiling=1:2 IN OUT", "2 to 100 strengths, FROM:TO:COUNT, for example Smiling=-2:2:"),
        ("edit --set Smiling=1:2:101 IN OUT", "not 'Smiling=1:2:101'"),
        ("edit --set Smiling=1:inf:3 IN OUT", "not 'Smiling=1:inf:3'"),
        (
            "edit --set Smiling=0:1:2 --set Male=0:1:2 --set Eyeglasses=0:1:2 IN OUT",
            "3 ranges of strengths; a grid has room for two",
        ),
        ("edit --set Smiling=1 EMPTY OUT", "empty is a folder without image files (.png, .jpg, .jp"),
        ("edit --set Smiling IN OUT", "--set takes NAME=STRENGTH"),
        ("edit --set Smiling=1e39 IN OUT", "a finite float32 number, for example Smiling=1.5, or a range of 2 to 100"),
        ("edit --set Smiling=nan IN OUT", "not 'Smiling=nan'"),
        ("edit IN OUT", "--set"),
        ("edit --set Smiling=1 --set Smiling=2 IN OUT", "--set gives Smiling several strengths;"),
        ("edit --set Smiling=1 '' OUT", 'an input is empty, ""; is a variable of your shell not set?'),
        ("edit --set Smiling=1 IN ''", 'OUT is empty, ""; is a variable of your shell not set?'),
        ("encode IN ''", 'OUT is empty, ""'),
        ("edit out.png --set Smiling=1", "no input: give at least one image file before OUT out.png"),
        ("edit --set Smiling=1", "no input and no output: give at least one image file, and then OUT"),
        ("encode z.npy", "no input: give at least one image file before OUT z.npy"),
        ("edit --set Smiling=1 absent.png OUT", "absent.png can't be used: no such file or directory"),
        ("edit --set Smiling=1 IN out.gif", "a GIF shows a range of strengths, for example --set Smil"),
        ("edit --set Smiling=1 IN out.bmp", "out.bmp must end in one of .png, .jpg, .jpeg, .webp, .gif"),
        ("edit --set Smiling=1 IN other.png OUT", "2 inputs need a folder to write to, and "),
        ("edit --set Smiling=1 a/x.png b/x.jpg FOLDER", "b/x.jpg would both be written to "),
        ("edit --set Smiling=1 IN no/such/folder/out.png", "lies in a folder that doesn't exist"),
        ("edit --set Smiling=1 IN FILE", "has no suffix, so a folder is meant, and it is a file; rem"),
        ("edit --set Smiling=1 IN IN/", "ends in a slash, so a folder is meant, and it is a file"),
        ("sample FILE", "has no suffix, so a folder is meant, and it is a file"),
        ("sample /proc/new.png", "error: /proc/new.png can't be used: "),
        ("encode IN out.png", "out.png must end in .npy"),
        ("encode IN absent/z.npy", "absent/z.npy lies in a folder that doesn't exist; make it first"),
        ("encode IN z.npy/", "z.npy/ is a folder; give a .npy file, for example z.npy/latents.npy"),
        ("decode IN OUT", "in.png is not a .npy file; `encode` writes one"),
        ("decode WHOLE OUT", "whole.npy must hold latents, float32 [N, latent_dim], not int64 [2, 192]"),
        ("interpolate IN WHOLE OUT", "must hold latents, float32 [N, latent_dim], not int64 [2, 192]"),
        ("sample --count 2000 OUT", "INVALID_ARGUMENT: "),
        ("interpolate --steps 1 IN IN OUT", "steps must be from 2 to 4294967295, not 1"),
        ("sample --count -1 OUT", "count must be from 1 to 4294967295, not -1"),
        ("sample --seed -1 OUT", "seed must be from 0 to 18446744073709551615, not -1"),
        ("sample --temperature 11 OUT", "temperature must be from 0 to 10, not 11.0"),
        ("sample --with smilin OUT", "unknown attribute 'smilin'; did you mean 'Smiling'?"),
        ("sample --without Bald OUT", "NOT_FOUND: "),
        ("info --model absent", "NOT_FOUND: "),
        ("info --target localhost", "--target 'localhost': it has no port; give HOST:PORT, for example loc"),
        ("info --target ''", "--target '': it takes HOST:PORT"),
        ("info --timeout-s 0", "--timeout-s must be above 0 and at most 1e+09, not 0"),
        ("info --timeout-s nan", "--timeout-s must be above 0 and at most 1e+09, not nan"),
        ("info --tls-ca IN", "in.png is no PEM file with certificates of authorities"),
        ("info --token-file absent", "absent can't be used: no such file or directory"),
        ("info --token 'two words'", "--token must be one word"),
        ("info --token-file IN", "in.png must be one word"),
        ("info --tls-cert cert.pem", "--tls-cert and --tls-key go together; give both"),
        (
            "info --tls-cert a --tls-key b",
            "a client certificate needs TLS; give tls, or --tls or --tls-ca FILE, as well",
        ),
        ("info --target example.org:1 --token t", "example.org:1 unencrypted; give --tls or --tls-ca as"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(server: ServerProcess, tmp_path: Path, command: str, message: str) -> None:
    names = {
        "IN": str(write_photo(tmp_path / "in.png", 8)),
        "OUT": str(tmp_path / "out.png"),
        "FOLDER": str(tmp_path / "folder"),
        "FILE": str(tmp_path / "file"),
        "WHOLE": str(tmp_path / "whole.npy"),
    }
    names["IN/"] = names["IN"] + "/"
    names["EMPTY"] = str(tmp_path / "empty")
    Path(names["EMPTY"]).mkdir()
    Path(names["FILE"]).write_text("older")
    np.save(names["WHOLE"], np.zeros((2, LATENT_DIM), np.int64))
    result = run(server, *(names.get(word, word) for word in shlex.split(command)))
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.png").exists()
    assert not (tmp_path / "folder").exists()
    assert Path(names["FILE"]).read_text() == "older"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("info --target localhost:1", "UNAVAILABLE: localhost:1: "),
        (
            "info --tls --target localhost:1",
            "is its certificate trusted (tls=FILE, or --tls-ca FILE), or does it ask for one?",
        ),
        ("health --target 127.0.0.1:1", "UNAVAILABLE: 127.0.0.1:1: "),
    ],
)
def test_a_server_that_does_not_answer_is_exit_code_1(server: ServerProcess, command: str, message: str) -> None:
    result = run(server, *command.split())
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["edit", "encode", "decode", "interpolate", "sample"])
def test_the_help_has_no_empty_defaults(server: ServerProcess, command: str) -> None:
    text = check(run(server, command, "--help"))
    assert "(default: )" not in text
    assert "OUT" in text
