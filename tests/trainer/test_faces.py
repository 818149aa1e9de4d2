"""Procedural faces: what is written, what the labels promise, and what the pictures show."""

import dataclasses
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Set
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scripts import running

from trainer.errors import ConfigError
from trainer.faces import ATTRIBUTES, Face, render_face, sample_face, write_faces, writer

CELEBA_HEADER = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair
Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup
High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose
Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat
Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young
"""
HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")

# Where an attribute may change the picture: left, top, right, bottom; wide enough for every pose.
REGIONS = {
    "Bangs": (25, 45, 153, 115),
    "Bushy_Eyebrows": (40, 78, 140, 115),
    "Eyeglasses": (20, 78, 160, 145),
    "Mouth_Slightly_Open": (45, 125, 135, 195),
    "Mustache": (50, 125, 130, 182),
    "Narrow_Eyes": (40, 88, 138, 132),
    "No_Beard": (20, 100, 160, 200),
    "Rosy_Cheeks": (15, 95, 163, 175),
    "Smiling": (40, 120, 140, 190),
    "Wearing_Hat": (0, 0, 178, 100),
    "Wearing_Lipstick": (45, 130, 135, 190),
}
NEEDS = {"Mustache": {"Male"}, "No_Beard": {"Male"}}
EXCLUDES = {"Wearing_Lipstick": {"Male"}, "Bangs": {"Bald"}, "Wearing_Hat": {"Bald"}}


def some_faces(count: int, needs: Set[str] = frozenset(), excludes: Set[str] = frozenset()) -> list[Face]:
    sampled = (sample_face(11, index) for index in itertools.count())
    fitting = (face for face in sampled if needs <= face.labels and not excludes & face.labels)
    return list(itertools.islice(fitting, count))


def with_label(face: Face, attribute: str, value: bool) -> Face:
    """The same face with one attribute set or cleared, all else equal."""
    return dataclasses.replace(face, labels=face.labels | {attribute} if value else face.labels - {attribute})


def as_trained(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The 64 x 64 centre crop that models see."""
    small = Image.fromarray(picture).crop((15, 35, 163, 183)).resize((64, 64), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32)


def read_rows(file: Path) -> list[list[str]]:
    return [line.split() for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 faces: several tasks' worth."""
    directory = tmp_path_factory.mktemp("faces") / "one"
    write_faces(directory, 70, seed=5, workers=1)
    return directory


def test_layout_is_celebas(written: Path) -> None:
    names = [f"{number:06d}.jpg" for number in range(1, 71)]
    assert sorted(path.name for path in (written / "img_align_celeba").iterdir()) == names
    for name in names[:3]:
        with Image.open(written / "img_align_celeba" / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (178, 218))

    count, header, *rows = read_rows(written / "list_attr_celeba.txt")
    assert count == ["70"]
    assert tuple(header) == ATTRIBUTES
    assert [row[0] for row in rows] == names
    for index, row in enumerate(rows):
        held = sample_face(5, index).labels
        assert row[1:] == ["1" if name in held else "-1" for name in ATTRIBUTES]

    partition = read_rows(written / "list_eval_partition.txt")
    assert partition == [[name, split] for name, split in zip(names, ["0"] * 56 + ["1"] * 7 + ["2"] * 7, strict=True)]


def test_summary_counts_what_was_written(written: Path) -> None:
    summary = json.loads((written / "faces.json").read_text())
    assert (summary["count"], summary["seed"]) == (70, 5)
    assert summary["generator_version"] == writer.FACES_VERSION
    assert tuple(summary["attributes"]) == ATTRIBUTES
    smiling = sum(sample_face(5, index).has("Smiling") for index in range(70))
    assert summary["share"]["Smiling"] == pytest.approx(smiling / 70)


def test_pictures_on_disk_are_the_rendered_faces(written: Path) -> None:
    with Image.open(written / "img_align_celeba" / "000070.jpg") as image:
        stored = np.asarray(image, np.float32)
    assert np.abs(stored - render_face(sample_face(5, 69))).mean() < 4  # JPEG's loss


def test_same_seed_same_bytes_with_more_workers(written: Path, tmp_path: Path) -> None:
    write_faces(tmp_path / "two", 70, seed=5, workers=2)
    paths = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert len(paths) == 73
    assert paths == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file())
    for path in paths:
        assert (written / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_other_seed_other_faces(written: Path, tmp_path: Path) -> None:
    write_faces(tmp_path / "other", 10, seed=6, workers=1)
    for name in ("000001.jpg", "000010.jpg"):
        first, other = (path / "img_align_celeba" / name for path in (written, tmp_path / "other"))
        assert first.read_bytes() != other.read_bytes()


def test_smallest_set_has_every_split(tmp_path: Path) -> None:
    write_faces(tmp_path / "ten", 10, workers=1)
    splits = [split for _, split in read_rows(tmp_path / "ten" / "list_eval_partition.txt")]
    assert splits == ["0"] * 8 + ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"count": 9}, r"--count is 9,.*at least 10"),
        ({"count": 20, "seed": -1}, r"--seed is -1,.*at least 0"),
        ({"count": 20, "workers": 0}, r"--workers is 0,.*at least 1"),
    ],
)
def test_small_numbers_are_refused(tmp_path: Path, arguments: dict[str, int], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        write_faces(tmp_path / "faces", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_existing_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    for taken in (tmp_path, tmp_path / "precious.txt"):
        with pytest.raises(FileExistsError, match=r"not an empty folder; give another folder"):
            write_faces(taken, 10, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    assert (tmp_path / "precious.txt").read_text() == "keep"


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    write_faces(tmp_path / "faces", 10, workers=1)
    assert (tmp_path / "faces" / "faces.json").is_file()


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    drawn = itertools.count()

    def render_two(face: Face) -> npt.NDArray[np.uint8]:
        if next(drawn) == 2:
            raise fault
        return render_face(face)

    monkeypatch.setattr(writer, "render_face", render_two)
    with pytest.raises(fault):
        write_faces(tmp_path / "faces", 10, workers=1)
    assert next(drawn) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_leaves_nothing(tmp_path: Path, signum: int, code: int) -> None:
    command = [sys.executable, "-m", "trainer", "faces", str(tmp_path / "faces"), "--count", "20000", "--workers", "2"]
    with running(command) as process:
        while not list(tmp_path.glob(".*/img_align_celeba/*.jpg")):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signum)
        _, said = process.communicate(timeout=250)
    assert process.returncode == code
    assert said.splitlines()[-1] == "error: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_attributes_are_celebas_in_its_order() -> None:
    assert len(ATTRIBUTES) >= 16
    assert [name for name in CELEBA_HEADER.split() if name in ATTRIBUTES] == list(ATTRIBUTES)


def test_exclusions_hold() -> None:
    for index in range(2000):
        labels = sample_face(1, index).labels
        assert labels <= set(ATTRIBUTES)
        assert sum(name in labels for name in (*HAIR, "Bald")) == 1
        if "Bald" in labels:
            assert "Male" in labels
            assert not labels & {"Bangs", "Wearing_Hat"}
        if "Male" in labels:
            assert "Wearing_Lipstick" not in labels
        else:
            assert "No_Beard" in labels
            assert "Mustache" not in labels


def test_every_attribute_has_plenty_on_both_sides() -> None:
    sampled = [sample_face(2, index) for index in range(2000)]
    held = np.array([[face.has(name) for name in ATTRIBUTES] for face in sampled])
    shares = dict(zip(ATTRIBUTES, held.mean(axis=0), strict=True))
    for name, share in shares.items():
        assert 0.15 < min(share, 1 - share) < 0.54, f"{name}: {share}"
    for name in ("Smiling", "Eyeglasses", "Male"):
        assert shares[name] == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("attribute", ["Smiling", "Eyeglasses"])
def test_smile_and_glasses_are_independent_of_everything(attribute: str) -> None:
    sampled = [sample_face(3, index) for index in range(4000)]
    columns = [[face.has(name) for face in sampled] for name in ATTRIBUTES if name != attribute]
    numbers = [field.name for field in dataclasses.fields(Face) if field.name != "labels"]
    columns += [[getattr(face, name) for face in sampled] for name in numbers]
    own = [face.has(attribute) for face in sampled]
    correlation = np.corrcoef(np.array([own, *columns], float))[0, 1:]
    assert np.abs(correlation).max() < 4 / np.sqrt(4000)  # four standard errors


def test_face_depends_on_seed_and_index_alone() -> None:
    assert sample_face(4, 9) == sample_face(4, 9)
    assert len({sample_face(seed, index) for seed in range(3) for index in range(3)}) == 9


def test_picture_is_uint8_rgb_and_repeatable() -> None:
    face = sample_face(0, 0)
    picture = render_face(face)
    assert picture.shape == (218, 178, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, render_face(face))


@pytest.mark.parametrize("attribute", REGIONS)
def test_attribute_changes_its_region_and_nothing_else(attribute: str) -> None:
    left, top, right, bottom = REGIONS[attribute]
    for face in some_faces(12, NEEDS.get(attribute, set()), EXCLUDES.get(attribute, set())):
        without, having = (render_face(with_label(face, attribute, value)) for value in (False, True))
        change = np.abs(having.astype(int) - without.astype(int)).max(axis=2)
        change[top:bottom, left:right] = 0
        assert change.max() == 0, f"{attribute} changes the picture at {np.argwhere(change)[0]}"
        seen = np.abs(as_trained(having) - as_trained(without)).max(axis=2) > 20
        assert seen.sum() >= 12, f"{attribute} hardly shows at 64 x 64: {face}"


@pytest.mark.parametrize("attribute", ["Male", "Pale_Skin"])
def test_attribute_of_the_whole_face_shows_widely(attribute: str) -> None:
    for face in some_faces(12, excludes={"Bald", "Mustache", "Wearing_Lipstick"}):
        without, having = (as_trained(render_face(with_label(face, attribute, value))) for value in (False, True))
        assert (np.abs(having - without).max(axis=2) > 20).sum() >= 200, face


@pytest.mark.parametrize("hat", [False, True])
def test_hair_colours_are_told_apart_even_under_a_hat(hat: bool) -> None:
    for face in some_faces(12, excludes={"Bald"}):
        bare = dataclasses.replace(with_label(face, "Wearing_Hat", hat), labels=face.labels - set(HAIR))
        pictures = [as_trained(render_face(with_label(bare, colour, True))) for colour in HAIR]
        for first, second in itertools.combinations(pictures, 2):
            assert (np.abs(first - second).max(axis=2) > 20).sum() >= 60, face


def test_bald_head_shows_skin_instead_of_hair() -> None:
    for face in some_faces(6, needs={"Male", "Black_Hair"}, excludes={"Wearing_Hat", "Bangs"}):
        bald = dataclasses.replace(face, labels=face.labels - {"Black_Hair"} | {"Bald"})
        haired, bare = (as_trained(render_face(each))[4:8, 24:40].mean() for each in (face, bald))
        assert bare > haired + 30
