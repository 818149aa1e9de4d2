"""Folders encoded at scale, as a process against real servers; read back as anybody reads Parquet."""

import csv
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bundles import smile_more, write_tiny_bundle
from gates import constant, until
from machine import as_nobody
from PIL import Image
from servers import ServerProcess, run_python, server_of, start_python
from tiny_model import IMAGE_SIZE, latents_of, random_images

from engine.batch.__main__ import main
from engine.client import Client

COUNT = 300


def command_of(target: str, images: Path, out: Path, *options: str) -> list[str]:
    return ["-m", "engine.batch", str(images), str(out), "--target", target, *options]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, some within other folders."""
    folder = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(random_images(COUNT, seed=9)):
        path = folder / f"person {index % 3}" / f"{index}.png" if index % 2 else folder / f"{index}.PNG"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def check_all_there(images: Path, out: Path) -> None:
    table = pq.read_table(out)
    assert table.column_names == ["path", "mu"]
    paths = table["path"].to_pylist()
    assert len(paths) == len(set(paths)) == COUNT, "each once"
    mu = np.stack(table["mu"].to_numpy())
    pixels = np.stack([np.asarray(Image.open(images / path)) for path in paths])
    np.testing.assert_array_equal(mu, latents_of(pixels))


def test_several_servers_encode_a_folder(
    server: ServerProcess, tiny_bundle: Path, images: Path, tmp_path: Path
) -> None:
    out, target = tmp_path / "latents.parquet", f"ipv4:{server.target},"
    with server_of(tiny_bundle, tmp_path, "--metrics-port", "0") as second:
        options = ("--images-per-request", "8", "--images-per-part", "100")
        result = run_python(command_of(target + second.target, images, out, *options), tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"wrote {COUNT} latents to {out}, which has {COUNT} now\n"
        share = second.metric("dfcvae_images_total", method="Encode")
        assert 0 < share < COUNT
    check_all_there(images, out)
    assert pq.read_table(out)["path"].to_pylist() == sorted(pq.read_table(out)["path"].to_pylist())
    again = run_python(command_of(server.target, images, out), tmp_path)
    assert again.stdout == f"wrote 0 latents to {out}, which has {COUNT} now\n"


def test_a_killed_run_goes_on_and_each_file_is_there_once(
    server: ServerProcess, tiny_bundle: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latents.parquet"
    with server_of(tiny_bundle, tmp_path, "--max-images-per-second", "30", "--burst", "30") as busy:
        command = command_of(busy.target, images, out, "--images-per-request", "2", "--images-per-part", "5")
        process = start_python(command, tmp_path)
        while len(list(out.glob("part-*.parquet"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
    refused = run_python(command_of(server.target, images, out), tmp_path)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed in the middle"
    (out / ".part-000099.parquet").write_bytes(b"what a kill in the middle of a write leaves")
    assert refused.returncode == 2
    assert f"error: another process is writing to {out}; wait for it, or name another OUT" in refused.stderr
    there = pq.read_table(out).num_rows
    assert 0 < there < COUNT
    result = run_python(command_of(server.target, images, out), tmp_path)
    assert result.stdout == f"wrote {COUNT - there} latents to {out}, which has {COUNT} now\n"
    check_all_there(images, out)


def test_few_requests_run_ahead_of_one_that_is_stuck(tiny_bundle: Path, tmp_path: Path) -> None:
    album, out = tmp_path / "album", tmp_path / "latents.parquet"
    album.mkdir()
    for index, pixels in enumerate(random_images(20, seed=4)):
        Image.fromarray(pixels).save(album / f"{index:02}.png")
    whole = (album / "00.png").read_bytes()
    (album / "00.png").unlink()
    os.mkfifo(album / "00.png")  # whoever reads it waits for the test
    with server_of(tiny_bundle, tmp_path, "--metrics-port", "0") as server, Client(server.target) as client:
        options = ("--images-per-request", "1", "--requests-in-flight", "2")
        process = start_python(command_of(server.target, album, out, *options), tmp_path)

        def encoded() -> float:
            return server.metric("dfcvae_images_total", method="Encode")

        try:
            ahead = 4  # twice those that are in flight
            until(lambda: encoded() >= ahead or process.poll() is not None)
            for _ in range(50):  # meanwhile one that went on would send more, too
                client.encode(constant(1))
            assert encoded() == ahead + 50
            (album / "00.png").write_bytes(whole)
            assert process.communicate() == (f"wrote 20 latents to {out}, which has 20 now\n", "")
        finally:
            process.kill()
    assert pq.read_table(out)["path"].to_pylist() == [f"{index:02}.png" for index in range(20)]


def test_damaged_files_are_listed_and_tried_again(server: ServerProcess, tmp_path: Path) -> None:
    album, out = tmp_path / "album", tmp_path / "latents.parquet"
    album.mkdir()
    for name, pixels in zip("abcd", random_images(4, seed=1), strict=True):
        Image.fromarray(pixels).save(album / f"{name}.png")
    whole = (album / "b.png").read_bytes()
    (album / "b.png").write_bytes(whole[:60])
    (album / "d.png").write_bytes(b"")
    (album / "huge.png").write_bytes(bytes(17 << 20))
    (album / "link.png").symlink_to("nowhere")
    result = run_python(command_of(server.target, album, out), tmp_path)
    assert result.returncode == 0
    assert result.stdout == f"wrote 2 latents to {out}, which has 2 now\n"
    assert f"can't be encoded: 4, listed in {out / '_damaged.csv'}" in result.stderr
    rows = list(csv.reader((out / "_damaged.csv").open()))
    assert [row[0] for row in rows] == ["path", "b.png", "d.png", "huge.png", "link.png"]
    assert rows[1][1].startswith("is damaged or truncated")
    assert rows[3][1].startswith(f"has {17 << 20} bytes; the server takes ")
    assert rows[4][1] == "can't be read: No such file or directory"
    (album / "b.png").write_bytes(whole)
    for name in ("d.png", "huge.png", "link.png"):
        (album / name).unlink()
    result = run_python(command_of(server.target, album, out), tmp_path)
    assert (result.stdout, result.stderr) == (f"wrote 1 latent to {out}, which has 3 now\n", "")
    assert pq.read_table(out)["path"].to_pylist() == ["a.png", "c.png", "b.png"]
    assert not (out / "_damaged.csv").exists()


def test_what_is_wrong_is_said(
    server: ServerProcess,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    for arguments, code, message in (
        ((server.target, tmp_path / "absent", other), 2, "absent is no folder; give one with images"),
        ((server.target, other, tmp_path / "out"), 2, "other has no image files (.png, .jpg, .jpeg, .webp), nor have "),
        ((server.target, images, other), 2, f"{other} has files of something else, mine.txt for example; name another"),
        ((server.target, images, other / "mine.txt"), 2, "mine.txt is a file, and OUT a folder of Parquet files; name"),
        ((server.target, images, tmp_path / "no" / "such"), 2, "can't be used: no such file or directory"),
        (
            (server.target, images, other, "--images-per-part", "0"),
            2,
            "--images-per-part must be from 1 to 1048576, not",
        ),
        (("localhost:1", images, tmp_path / "out"), 1, "error: UNAVAILABLE: localhost:1: "),
    ):
        target, *rest = arguments
        monkeypatch.setattr(sys, "argv", [str(word) for word in command_of(str(target), *rest)][1:])
        assert main() == code
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_latents_of_two_models_are_not_mixed(server: ServerProcess, tmp_path: Path) -> None:
    album, out = tmp_path / "album", tmp_path / "latents.parquet"
    album.mkdir()
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE)).save(album / "black.png")
    assert run_python(command_of(server.target, album, out), tmp_path).returncode == 0
    bundle = write_tiny_bundle(tmp_path / "bundle")
    smile_more(bundle, 2)
    with server_of(bundle, tmp_path) as second:
        result = run_python(command_of(second.target, album, out), tmp_path)
    assert result.returncode == 2
    assert f"error: {out} has latents of another model; name another OUT, or remove {out}" in result.stderr


def test_latents_of_servers_with_other_bundles_are_not_mixed(
    server: ServerProcess, images: Path, tmp_path: Path
) -> None:
    bundle, out = write_tiny_bundle(tmp_path / "bundle"), tmp_path / "latents.parquet"
    smile_more(bundle, 2)
    with server_of(bundle, tmp_path) as second:
        target = f"ipv4:{server.target},{second.target}"
        result = run_python(command_of(target, images, out, "--images-per-request", "8"), tmp_path)
    assert result.returncode == 2
    assert "error: NOT_FOUND: the bundle of model default is '" in result.stderr
    assert "latents of one mean nothing to the other" in result.stderr


def test_folders_without_permission_are_listed(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "album" / "closed").mkdir(parents=True)
    (tmp_path / "album" / "closed").chmod(0o000)
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE)).save(tmp_path / "album" / "black.png")
    arguments = command_of(server.target, Path("album"), Path("out.parquet"))
    result = as_nobody(tmp_path, [sys.executable, *arguments])
    (tmp_path / "album" / "closed").chmod(0o755)
    assert result.stdout == "wrote 1 latent to out.parquet, which has 1 now\n"
    assert "'closed': can't be read: Permission denied" in result.stderr
    rows = list(csv.reader((tmp_path / "out.parquet" / "_damaged.csv").open()))
    assert rows == [["path", "error"], ["closed", "can't be read: Permission denied"]]


def test_a_damaged_part_is_named(server: ServerProcess, tmp_path: Path) -> None:
    album, out = tmp_path / "album", tmp_path / "latents.parquet"
    album.mkdir()
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE)).save(album / "black.png")
    command = command_of(server.target, album, out)
    assert run_python(command, tmp_path).returncode == 0
    part = out / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-5])
    result = run_python(command, tmp_path)
    assert result.returncode == 2
    assert f"error: {part} is damaged (" in result.stderr
    assert "); remove it, and its images are encoded again" in result.stderr
    part.unlink()
    assert run_python(command, tmp_path).stdout == f"wrote 1 latent to {out}, which has 1 now\n"


def test_a_part_that_has_no_room_is_named(server: ServerProcess, images: Path, tmp_path: Path) -> None:
    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    out = tmp_path / "latents.parquet"
    process = start_python(command_of(server.target, images, out), tmp_path, preexec_fn=allow_small_files_only)
    assert process.communicate()[1] == f"error: {out / 'part-000000.parquet'} can't be used: file too large\n"
    assert process.returncode == 2
    assert run_python(command_of(server.target, images, out), tmp_path).returncode == 0
    check_all_there(images, out)
