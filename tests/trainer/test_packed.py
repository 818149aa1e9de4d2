import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scripts import running

from framing import CELEBA_SOURCE, Aligner, Frame
from trainer.data import Pack, load_data, pixels, read_index
from trainer.data.celeba import IMAGES
from trainer.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Thirty small pictures in a plain folder, each of one grey."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        Image.new("RGB", (40, 40), (number,) * 3).save(folder / f"{number:02d}.png")
    return folder


def leftovers(folder: Path) -> list[str]:
    """What packing left beside finished arrays; the empty file of its lock may stay."""
    return [path.name for path in (folder / "packed").glob("*") if path.suffix != ".lock"]


def test_images_are_decoded_once_and_mapped_afterwards(photos: Path) -> None:
    first = load_data(photos, 32, 0)
    packed = next((photos / "packed").glob("*.npy"))
    written = packed.stat().st_mtime_ns
    again = load_data(photos, 32, 0)
    assert packed.stat().st_mtime_ns == written
    assert isinstance(again.images, np.memmap)
    assert again.fingerprint == first.fingerprint
    assert again.images[:, 5, 5, 1].tolist() == list(range(30))


def test_a_changed_image_a_changed_size_and_a_changed_crop_are_packed_again(photos: Path) -> None:
    paths = {Pack.of(read_index(photos), Frame.of(32, crop, CELEBA_SOURCE)).path for crop in (0, 20)}
    first = load_data(photos, 16, 0)
    paths.add(Pack.of(first.index, Frame(16)).path)
    Image.new("RGB", (40, 40), "red").save(photos / "05.png")
    changed = load_data(photos, 32, 0)
    assert changed.images[5, 16, 16].tolist() == [255, 0, 0]
    assert len({*paths, Pack.of(changed.index, Frame(32)).path}) == 4
    assert load_data(photos, 16, 0).fingerprint != first.fingerprint


def test_a_copy_has_the_same_fingerprint(photos: Path, tmp_path: Path) -> None:
    first = load_data(photos, 32, 0)
    shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = load_data(tmp_path / "copy", 32, 0)
    assert copy.fingerprint == first.fingerprint
    limited = Pack.of(first.index.limited(5), Frame(32)).data()
    assert limited.fingerprint == first.fingerprint


def test_a_read_only_data_set_is_packed_in_the_cache(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, too, may run this test
    load_data(photos, 32, 0)
    assert not (photos / "packed").exists()
    assert list((tmp_path / "cache" / "dfc-vae" / "packed").glob("*.npy"))


def test_all_unusable_images_are_named_together_and_nothing_is_left_behind(broken: Path) -> None:
    images = broken / IMAGES
    (images / "000003.jpg").write_bytes(b"")
    (images / "000031.jpg").write_bytes((images / "000031.jpg").read_bytes()[:1000])
    (images / "000150.jpg").write_text("a text")
    Image.new("RGB", (64, 64)).save(images / "000200.jpg")
    with pytest.raises(DataError) as caught:
        load_data(broken, 32, 148)
    head, *lines = str(caught.value).splitlines()
    assert head == (
        "4 of 200 images cannot be used; for each, replace it, or remove its line from list_attr_celeba.txt and lower "
        "the count in line 1; or train without them by --skip-damaged 4:"
    )
    assert [line.strip().removeprefix(f"{images}/").split()[0] for line in lines] == [
        "000003.jpg",
        "000031.jpg",
        "000150.jpg",
        "000200.jpg",
    ]
    assert lines[3].endswith(
        "is 64x64 pixels, smaller than the crop of 148; train with --crop 0 on images that are cropped already"
    )
    assert not leftovers(broken)


def test_a_single_unusable_image_is_one_sentence(photos: Path) -> None:
    (photos / "07.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^/[^\n]*07\.png is empty \(0 bytes\); replace it, or delete it, or .*1$"):
        load_data(photos, 32, 0)


def test_ten_are_named_and_the_rest_are_listed_in_a_file(photos: Path) -> None:
    for number in range(12):
        (photos / f"{number:02d}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        load_data(photos, 32, 0)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("12 of 30 images cannot be used; for each, replace it, or delete it")
    assert len(lines) == 1 + 10 + 1
    listed = lines[-1].split("... and 2 more, all in ")[1]
    named = [line.split()[0] for line in Path(listed).read_text().splitlines()]
    assert named == [str(photos / f"{number:02d}.png") for number in range(12)]
    for name in named:
        Image.new("RGB", (40, 40)).save(name)
    load_data(photos, 32, 0)
    assert not Path(listed).exists()


def test_images_that_are_all_smaller_than_the_crop_are_refused_before_any_is_decoded(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "read", None)
    pack = Pack.of(read_index(photos), Frame.of(32, 148, CELEBA_SOURCE))
    with pytest.raises(DataError, match=r"00\.png is 40x40 pixels, smaller than the crop of 148; train with --crop 0"):
        pack.check()


def test_a_full_disk_is_found_before_packing_and_named_with_both_numbers(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 90_000))
    with pytest.raises(DataError, match=r"30 images of 32 pixels needs 0\.1 MB, .*/packed has 0\.1 MB free; free some"):
        load_data(photos, 32, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 30 * 32 * 32 * 3))
    assert len(load_data(photos, 32, 0).images) == 30


def test_a_disk_that_fills_up_while_packing_leaves_nothing_behind(photos: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limit[1]))  # Python turns the signal into an error
    try:
        with pytest.raises(DataError, match=r"\.npy cannot be written \(File too large\); it needs 0\.1 MB: free some"):
            load_data(photos, 32, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not leftovers(photos)


def test_a_torn_packed_file_is_named_with_the_mend(photos: Path) -> None:
    load_data(photos, 32, 0)
    packed = next((photos / "packed").glob("*.npy"))
    packed.write_bytes(packed.read_bytes()[:5000])
    with pytest.raises(DataError, match=rf"{packed.name} is torn .*; delete it"):
        load_data(photos, 32, 0)


def test_of_two_that_pack_at_once_one_waits_for_the_other(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first holds still in its first image until the second says that it waits, or decodes an image as well."""
    second_is_there = threading.Event()
    decoded: list[Path] = []
    read = pixels.read

    def counted(path: Path, frame: Frame, aligner: Aligner | None) -> pixels.Reading:
        if path in decoded:
            second_is_there.set()
        decoded.append(path)
        second_is_there.wait(60)
        return read(path, frame, aligner)

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for it" in record.getMessage():
                second_is_there.set()

    monkeypatch.setattr(pixels, "read", counted)
    logger = logging.getLogger("trainer.data.packed")
    monkeypatch.setattr(logger, "handlers", [Waits()])
    logger.setLevel(logging.INFO)
    packs = [Pack.of(read_index(photos), Frame(32)) for _ in range(2)]
    results: list[npt.NDArray[np.uint8]] = []
    threads = [threading.Thread(target=lambda pack=pack: results.append(pack.images())) for pack in packs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 30
    assert len(results) == 2
    assert np.array_equal(results[0], results[1])


def test_an_interrupt_leaves_no_half_file(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (3000, 3000)).save(folder / "0.bmp")
    for number in range(1, 500):  # a minute of decoding
        (folder / f"{number}.bmp").hardlink_to(folder / "0.bmp")
    command = ["train", "--preset", "plain", "--data", folder, "--crop", "0", "--out", tmp_path / "run"]
    with running([sys.executable, "-m", "trainer", *command]) as process:
        while not list((folder / "packed").glob(".*.tmp")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in said
    assert not leftovers(folder)
    assert not (tmp_path / "run").exists()
