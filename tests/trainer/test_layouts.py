"""The data sets that people have, each made of a few pictures."""

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framing import Frame
from trainer.__main__ import main
from trainer.config import ModelConfig, TrainConfig
from trainer.data import FaceData, Index, Pack, load_data, load_data_for, read_index
from trainer.data.celeba import ATTRIBUTES as ATTRIBUTES_FILE
from trainer.data.celeba import IMAGES, PARTITION
from trainer.data.index import split_by_name
from trainer.data.labels import relabel
from trainer.errors import DataError

COUNT = 24
NAMES = [f"{number:06d}.jpg" for number in range(1, COUNT + 1)]
ATTRIBUTES = ("Smiling", "Male")
LABELS = np.array([[number % 2, number % 3 == 0] for number in range(COUNT)], bool)
SPLITS = np.array([0] * 16 + [1] * 4 + [2] * 4)


def draw(folder: Path, names: list[str]) -> None:
    """Pictures whose grey tells which is which."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (10 * number,) * 3).save(path)


def rows(yes: str = "1", no: str = "-1", gap: str = " ", names: list[str] = NAMES) -> list[str]:
    """A line an image: its name and labels."""
    return [gap.join([name, *(yes if has else no for has in held)]) for name, held in zip(names, LABELS, strict=True)]


def write(path: Path, lines: list[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def torchvision(root: Path) -> Path:
    draw(root / "img_align_celeba", NAMES)
    write(root / "list_attr_celeba.txt", [str(COUNT), " ".join(ATTRIBUTES), *rows()])
    write(root / "list_eval_partition.txt", [f"{name} {split}" for name, split in zip(NAMES, SPLITS, strict=True)])
    return root


def kaggle(root: Path, end: str = "\n") -> Path:
    draw(root / "img_align_celeba" / "img_align_celeba", NAMES)
    write(root / "list_attr_celeba.csv", ["image_id,Smiling,Male", *rows(gap=",")], end)
    splits = [f"{name},{split}" for name, split in zip(NAMES, SPLITS, strict=True)]
    write(root / "list_eval_partition.csv", ["image_id,partition", *splits], end)
    write(root / "list_bbox_celeba.csv", ["image_id,x_1,y_1,width,height", *(f"{name},1,2,3,4" for name in NAMES)], end)
    return root


def mask_hq(root: Path) -> Path:
    names = [f"{number}.jpg" for number in range(COUNT)]
    draw(root / "CelebA-HQ-img", names)
    draw(
        root / "CelebAMask-HQ-mask-anno",
        [f"0/{number:05d}_{part}.png" for number in range(5) for part in ("l_eye", "skin")],
    )
    lines = [str(COUNT), " ".join(ATTRIBUTES), *(row.replace(" ", "  ", 1) for row in rows(names=names))]
    write(root / "CelebAMask-HQ-attribute-anno.txt", lines)
    return root


def lfw(root: Path, people: int = 30) -> Path:
    draw(root, [f"person{number}/person{number}_{picture}.jpg" for number in range(people) for picture in range(4)])
    return root


def require_celeba(index: Index) -> None:
    assert index.files == tuple(NAMES)
    assert index.attributes == ATTRIBUTES
    assert np.array_equal(index.labels, LABELS)
    assert np.array_equal(index.splits, SPLITS)


def greys(data: FaceData) -> list[int]:
    return [round(int(image[8, 8, 1]) / 10) for image in data.images]


# CelebA and its relatives


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_kaggles_celeba_is_read_as_it_is(tmp_path: Path, end: str) -> None:
    data = load_data(kaggle(tmp_path / "archive", end), 16, 0)
    require_celeba(data.index)
    assert data.index.layout == "CelebA's layout"
    assert greys(data) == list(range(COUNT))


@pytest.mark.parametrize("make", [torchvision, kaggle, mask_hq])
@pytest.mark.parametrize(
    "given", ["above", "root", "img_align_celeba", "img_align_celeba/img_align_celeba", "CelebA-HQ-img"]
)
def test_a_folder_given_one_level_too_high_or_too_low_is_the_same_data_set(
    tmp_path: Path, make: object, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(make)
    root = make(tmp_path / "above" / "set")
    expected = read_index(root)
    directory = {"above": root.parent, "root": root}.get(given, root / given)
    if directory.is_dir():
        index = read_index(directory)
        assert (index.root, index.folder, index.files) == (expected.root, expected.folder, expected.files)
        assert np.array_equal(index.labels, LABELS)
        monkeypatch.chdir(directory)
        assert read_index(Path()).files == expected.files


def test_lists_further_down_are_not_passed_over(tmp_path: Path) -> None:
    root = kaggle(tmp_path / "celeba-dataset" / "versions" / "2")
    with pytest.raises(DataError, match=rf"celeba-dataset holds CelebA's lists further down, in {root}; give that"):
        read_index(tmp_path / "celeba-dataset")


def test_of_two_data_sets_in_a_folder_one_must_be_given(tmp_path: Path) -> None:
    kaggle(tmp_path / "a")
    torchvision(tmp_path / "b")
    with pytest.raises(DataError, match="holds several data sets, a and b; give one of them"):
        read_index(tmp_path)


def test_images_of_celeba_without_lists_are_a_plain_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "set" / "img_align_celeba", NAMES)
    index = read_index(tmp_path / "set")
    assert index.files == tuple(f"img_align_celeba/{name}" for name in NAMES)
    assert index.attributes == ()
    assert "has no list_attr_celeba.txt (or .csv) beside its images, so they have no attributes" in caplog.text


@pytest.mark.parametrize(
    "lines",
    [
        [" ".join(ATTRIBUTES), *rows()],
        [str(COUNT), "Smiling\tMale", *rows(gap="\t")],
        [str(COUNT), " Smiling  Male ", *rows(gap="  ")],
        ["\ufeff" + str(COUNT), " ".join(ATTRIBUTES), *rows()],
        ["\ufeff" + " ".join(ATTRIBUTES), "", *rows(no="0")],
        [str(COUNT), " ".join(ATTRIBUTES), *rows(no="0")],
        ["image_id Smiling Male", *rows()],
    ],
    ids=["no count", "tabs", "double blanks", "BOM", "BOM, no count, 0/1", "0/1", "header of all columns"],
)
def test_copies_of_the_attribute_list_are_read_alike(tmp_path: Path, lines: list[str]) -> None:
    root = torchvision(tmp_path / "set")
    write(root / ATTRIBUTES_FILE, lines)
    require_celeba(read_index(root))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["Smiling Male", *rows()[:3], "000004.jpg 1 2", *rows()[4:]],
            r"line 5 \(000004.jpg\): '2' of \w+ is neither 1 nor -1",
        ),
        (
            ["Smiling Male", *rows(no="0")[:3], "000004.jpg 1 -1"],
            r"line 5 \(000004.jpg\): '-1' of \w+ is neither 1 nor 0",
        ),
        (["Smiling Male", *rows()[:3], "000004.jpg 1"], r"line 5 \(000004.jpg\): 1 values, but line 1 names 2"),
        (["Smiling Male"], r"1 line\(s\) and 0 rows of images; needs"),
    ],
)
def test_a_list_without_a_count_is_judged_by_its_lines(tmp_path: Path, lines: list[str], said: str) -> None:
    root = torchvision(tmp_path / "set")
    write(root / ATTRIBUTES_FILE, lines)
    with pytest.raises(DataError, match=said):
        read_index(root)


def test_without_a_partition_the_splits_are_drawn_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = torchvision(tmp_path / "set")
    (root / PARTITION).unlink()
    with caplog.at_level(logging.INFO):
        index = read_index(root)
    assert np.array_equal(index.splits, split_by_name(NAMES))
    assert "has no list_eval_partition.txt: its images are split by name, 22 train, 1 val, 1 test" in caplog.text
    assert np.array_equal(index.labels, LABELS)


def test_celebamask_hq_gives_faces_and_attributes_and_no_masks(tmp_path: Path) -> None:
    root = mask_hq(tmp_path / "CelebAMask-HQ")
    index = read_index(root)
    assert index.layout == "CelebAMask-HQ's layout"
    assert index.files == tuple(f"{number}.jpg" for number in range(COUNT))
    assert np.array_equal(index.labels, LABELS)
    (root / "CelebAMask-HQ-attribute-anno.txt").unlink()
    assert read_index(root).files == tuple(sorted(f"CelebA-HQ-img/{number}.jpg" for number in range(COUNT)))
    for folder in (root / "CelebAMask-HQ-mask-anno", root / "CelebAMask-HQ-mask-anno" / "0"):
        with pytest.raises(DataError, match="holds the masks of CelebAMask-HQ, not faces"):
            read_index(folder)


# Absent and damaged images


def test_rows_without_an_image_are_left_out_up_to_a_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = kaggle(tmp_path / "set")
    for name in (NAMES[2], NAMES[20]):
        (root / "img_align_celeba" / "img_align_celeba" / name).unlink()
    for skip in (0, 1):
        with pytest.raises(
            DataError,
            match=r"000003\.jpg is not in .*, nor is another, .*missing by --skip-damaged 2$",
        ):
            read_index(root, skip_damaged=skip)
    data = load_data(root, 16, 0, skip_damaged=2)
    kept = [row for row in range(COUNT) if row not in (2, 20)]
    assert data.index.files == tuple(NAMES[row] for row in kept)
    assert np.array_equal(data.index.labels, LABELS[kept])
    assert np.array_equal(data.index.splits, SPLITS[kept])
    assert greys(data) == kept
    assert data.index.left_out == ("000003.jpg is absent", "000021.jpg is absent")
    assert "2 image(s) are left out: 000003.jpg is absent; 000021.jpg is absent" in caplog.text


def test_damaged_images_are_in_no_split_and_are_recorded(tmp_path: Path) -> None:
    root = torchvision(tmp_path / "set")
    images = root / IMAGES
    (images / NAMES[1]).write_bytes(b"")
    (images / NAMES[17]).write_text("no image")
    (images / NAMES[22]).unlink()
    for _ in range(2):  # the second reading finds the packed array
        data = load_data(root, 16, 0, skip_damaged=3)
        used = np.concatenate([data.rows(split) for split in ("train", "val", "test")])
        assert [data.index.files[row] for row in used] == [
            name for row, name in enumerate(NAMES) if row not in (1, 17, 22)
        ]
        assert data.index.left_out == (
            "000023.jpg is absent",
            "000002.jpg is empty (0 bytes)",
            "000018.jpg is not an image (it starts with b'no image')",
        )
    with pytest.raises(DataError) as caught:  # the packed array is there, and fewer may be left out
        load_data(root, 16, 0, skip_damaged=2)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("2 of 23 images cannot be used")
    assert head.endswith("or train without them by --skip-damaged 3:")
    assert lines[0].strip() == f"{images}/{NAMES[1]} is empty (0 bytes)"
    Image.new("RGB", (20, 20)).save(images / NAMES[1])
    assert len(load_data(root, 16, 0, skip_damaged=2).index.left_out) == 2


def test_a_split_that_loses_all_its_images_is_refused(tmp_path: Path) -> None:
    root = torchvision(tmp_path / "set")
    for name in NAMES[16:20]:
        (root / IMAGES / name).write_bytes(b"")
    with pytest.raises(DataError, match="no image is left in the val split"):
        load_data(root, 16, 0, skip_damaged=4)


# Folders


def test_ffhq_is_a_plain_folder_of_folders(tmp_path: Path) -> None:
    names = [f"{number // 10 * 10:05d}/{number:05d}.png" for number in range(COUNT)]
    draw(tmp_path / "images", names)
    (tmp_path / "LICENSE.txt").touch()
    (tmp_path / "ffhq-dataset-v2.json").touch()
    data = load_data(tmp_path, 16, 0)
    assert data.index.files == tuple(f"images/{name}" for name in names)
    assert greys(data) == list(range(COUNT))


@pytest.mark.parametrize("above", ["", "lfw-deepfunneled/lfw-deepfunneled"])
def test_a_person_is_in_one_split_only(tmp_path: Path, above: str) -> None:
    lfw(tmp_path / "set" / above)
    splits_of: dict[str, set[int]] = {}
    index = read_index(tmp_path / "set", split_by="folder")
    for name, split in zip(index.files, index.splits, strict=True):
        splits_of.setdefault(Path(name).parent.name, set()).add(int(split))
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert np.bincount(index.splits).tolist() == [104, 8, 8]
    assert read_index(tmp_path / "set").splits.tolist() != index.splits.tolist()


def test_one_crowded_folder_leaves_some_to_train_on(tmp_path: Path) -> None:
    draw(tmp_path, [f"a/{number}.png" for number in range(25)] + ["b/1.png", "c/1.png"])
    index = read_index(tmp_path, split_by="folder")
    assert all(len(index.rows(split)) for split in ("train", "val", "test"))


def test_what_has_no_folders_cannot_be_split_by_them(tmp_path: Path) -> None:
    draw(tmp_path / "flat", NAMES)
    lfw(tmp_path / "two", people=2)
    draw(tmp_path / "two", NAMES)
    for folder, count in (("flat", 0), ("two", 2)):
        with pytest.raises(DataError, match=rf"--split-by folder: .*{folder} has {count} folder\(s\) to split by"):
            read_index(tmp_path / folder, split_by="folder")
    with pytest.raises(DataError, match=r"--split-by folder: the images of .* are in one folder"):
        read_index(torchvision(tmp_path / "set"), split_by="folder")


# Labels by CSV


def csv_for(path: Path, lines: list[str]) -> Path:
    write(path, ["file,Happy", *lines])
    return path


def test_a_csv_gives_any_folder_attributes(tmp_path: Path) -> None:
    root = lfw(tmp_path / "set")
    names = read_index(root).files
    lines = [f"{name if row % 2 else Path(name).name},{row % 3 == 0:d}" for row, name in enumerate(names)]
    index = read_index(root, labels=csv_for(tmp_path / "labels.csv", lines[::-1]), split_by="folder")
    assert index.attributes == ("Happy",)
    assert index.files == names
    assert index.labels[:, 0].tolist() == [row % 3 == 0 for row in range(len(names))]
    assert np.array_equal(index.splits, read_index(root, split_by="folder").splits)


def test_a_csv_replaces_the_labels_of_celeba_and_keeps_its_splits_and_pixels(tmp_path: Path) -> None:
    root = kaggle(tmp_path / "set")
    table = csv_for(tmp_path / "labels.csv", [f"{name};1" for name in NAMES])
    table.write_text(table.read_text().replace(",", ";"))
    index = read_index(root, labels=table)
    assert (index.attributes, bool(index.labels.all())) == (("Happy",), True)
    assert np.array_equal(index.splits, SPLITS)
    before, after = (Pack.of(one, Frame(16)) for one in (read_index(root), index))
    assert before.path == after.path


def test_images_that_a_csv_does_not_list_are_refused_or_left_out(tmp_path: Path) -> None:
    root = torchvision(tmp_path / "set")
    table = csv_for(tmp_path / "labels.csv", [f"{NAMES[row]},{row % 2}" for row in (18, 3, 4)])
    with pytest.raises(DataError, match=r"labels.csv lists 3 of the 24 images of .*set and not 000001.jpg; add a line"):
        read_index(root, labels=table)
    index = relabel(read_index(root), table, some=True)
    assert index.rows("train").tolist() == [3, 4]
    assert index.rows("val").tolist() == [18]
    assert index.labels[[3, 4, 18], 0].tolist() == [True, False, False]
    assert not len(index.rows("test"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a/1.png,yes"], r"labels\.csv, line 2 \(a/1\.png\): 'yes' of Happy is none of 1, 0 and -1"),
        (["a/1.png,1", "a/2.png,"], r"line 3 \(a/2\.png\): '' of Happy is none of 1, 0 and -1"),
        (["a/1.png,1", "", "a/2.png,1,0"], r"line 4 \(a/2\.png\): 2 values, but line 1 names 1"),
        (
            ["a/9.png,1"],
            r"a/9\.png is not in .*/set, though line 2 of labels\.csv .* relative to .*/set, such as a/0\.png",
        ),
        (["1.png,1"], r"line 2: 1\.png may be a/1\.png and b/1\.png; give the name with its folders"),
        (["c.png,1", "./c/c.png,1"], r"line 3: \./c/c\.png is the image of line 2, too; keep one line an image"),
        (["a/1.png,1", "a/1.png,0"], r"lists a/1\.png 2 times; keep one line an image"),
        ([], r"1 line\(s\) and 0 rows of images; needs a header such as `file,Smiling`, then images"),
    ],
)
def test_a_mistake_in_a_csv_is_one_sentence(tmp_path: Path, lines: list[str], said: str) -> None:
    draw(tmp_path / "set", [f"{folder}/{number}.png" for folder in "ab" for number in range(9)] + ["c/c.png", "d.png"])
    with pytest.raises(DataError, match=said):
        relabel(read_index(tmp_path / "set"), csv_for(tmp_path / "labels.csv", lines), some=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [("file,Happy,Happy\na.png,1,0\n", "line 1: needs the attribute names, each once"), ("\n", "is empty; restore it")],
)
def test_a_csv_without_a_proper_header_is_refused(tmp_path: Path, content: str, said: str) -> None:
    draw(tmp_path / "set", NAMES)
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        read_index(tmp_path / "set", labels=tmp_path / "labels.csv")
    with pytest.raises(DataError, match=r"--labels .*none\.csv: does not exist; give a CSV with the header"):
        read_index(tmp_path / "set", labels=tmp_path / "none.csv")


@pytest.mark.parametrize("some", [True, False])
@pytest.mark.parametrize("lines", [["a/9.png,1"], ["a/9.png,1", "a/1.png,1"]])
def test_to_skip_images_is_advised_where_it_helps(tmp_path: Path, lines: list[str], some: bool) -> None:
    draw(tmp_path / "set", [f"{folder}/{number}.png" for folder in "abc" for number in range(9)])
    with pytest.raises(DataError) as caught:
        relabel(read_index(tmp_path / "set"), csv_for(tmp_path / "labels.csv", lines), some=some)
    helps = not some and len(lines) > 1  # of a list of nothing else nothing would be left
    assert ("--skip-damaged" in str(caught.value)) == helps
    assert ("remove the lines of images that are not there" in str(caught.value)) == some


def test_labels_and_splits_of_a_run_are_for_its_own_data(tmp_path: Path) -> None:
    root = lfw(tmp_path / "own")
    names = read_index(root).files
    table = csv_for(tmp_path / "labels.csv", [f"{name},{row % 2}" for row, name in enumerate(names)])
    config = TrainConfig(model=ModelConfig(image_size=32), crop=0, labels=table, split_by="folder")
    own = load_data(root, 32, 0, labels=table, split_by="folder")
    resolved = {"data": str(root), "data_fingerprint": own.fingerprint}
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    for place in (root, copy):
        found = load_data_for(config, resolved, place)
        assert (found.index.attributes, found.fingerprint) == (("Happy",), own.fingerprint)
    celeba = torchvision(tmp_path / "celeba")
    found = load_data_for(config, resolved, celeba)
    assert (found.index.attributes, found.index.splits.tolist()) == (ATTRIBUTES, SPLITS.tolist())
    Image.new("RGB", (20, 20), "red").save(copy / names[0])  # other pictures, though of the same names
    assert load_data_for(config, resolved, copy).index.attributes == ()
    theirs = csv_for(tmp_path / "theirs.csv", [f"{name},1" for name in NAMES])
    assert load_data_for(config, resolved, celeba, labels=theirs).index.attributes == ("Happy",)
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        load_data_for(config, resolved, tmp_path / "nowhere")
    csv_for(table, [f"{name},1" for name in names[1:]])
    with pytest.raises(DataError, match=rf"labels\.csv lists {len(names) - 1} of the {len(names)} images"):
        load_data_for(config, resolved, root)


# Parquet


def parquet(path: Path, first: int, count: int, column: str = "image", **more: list[object]) -> None:
    """Rows as `datasets` writes them, in row groups of five."""
    import pyarrow
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = []
    for number in range(first, first + count):
        Image.new("RGB", (20, 20), (10 * number,) * 3).save(path.with_suffix(".png"))
        cells.append({"bytes": path.with_suffix(".png").read_bytes(), "path": None})
    path.with_suffix(".png").unlink()
    held = LABELS[first : first + count]
    columns = {column: cells, "celeb_id": list(range(count)), "Smiling": held[:, 0].tolist()}
    columns |= {"Male": np.where(held[:, 1], 1, -1).tolist(), "caption": ["a face"] * count, **more}
    write_table(pyarrow.table(columns), path, row_group_size=5)


def test_parquet_files_give_images_labels_and_splits(tmp_path: Path) -> None:
    for name, first, count in (("train-00000-of-00002", 0, 12), ("train-00001-of-00002", 12, 4), ("test-00000", 20, 4)):
        parquet(tmp_path / "set" / "data" / f"{name}.parquet", first, count)
    parquet(tmp_path / "set" / "data" / "validation-00000-of-00001.parquet", 16, 4)
    data = load_data(tmp_path / "set", 16, 0)
    order = [20, 21, 22, 23, *range(20)]
    assert greys(data) == order
    assert data.index.attributes == ATTRIBUTES
    assert np.array_equal(data.index.labels, LABELS[order])
    assert np.array_equal(data.index.splits, SPLITS[order])
    assert (data.index.layout, data.index.files[3]) == ("parquet files", "data/test-00000.parquet/3")


def test_the_quickstart_sends_files_of_its_own_for_images_in_parquet(tmp_path: Path) -> None:
    from quickstart.__main__ import Quickstart, write_order

    parquet(tmp_path / "set" / "faces.parquet", 0, COUNT)
    data = load_data(tmp_path / "set", 16, 0)
    jobs = write_order(Quickstart(), data, ["Smiling"], tmp_path / "order.json")
    files = [Path(file) for job in jobs for file in job.files]
    sent = sorted(round(Image.open(file).convert("L").getpixel((8, 8)) / 10) for file in files)  # type: ignore[operator]
    assert sent == sorted(data.rows("test"))
    assert all(file.is_relative_to(tmp_path / "asked") for file in files)


def test_splits_that_parquet_files_lack_are_drawn_by_name(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", 0, 20)
    parquet(tmp_path / "test.parquet", 20, 4)
    index = read_index(tmp_path)
    assert index.splits[:4].tolist() == [2] * 4
    assert sorted(np.unique(index.splits[4:])) == [0, 1]
    (tmp_path / "test.parquet").rename(tmp_path / "more.parquet")
    index = read_index(tmp_path)
    assert np.array_equal(index.splits, split_by_name(index.files))


def test_previews_beside_parquet_files_are_not_the_data_set(tmp_path: Path) -> None:
    parquet(tmp_path / "set" / "data" / "train.parquet", 0, COUNT)
    draw(tmp_path / "set" / "assets", NAMES[:3])
    assert read_index(tmp_path / "set").layout == "parquet files"


def test_a_damaged_row_of_parquet_is_named(tmp_path: Path) -> None:
    cells: list[object] = [{"bytes": b"" if number else None, "path": None} for number in range(COUNT)]
    parquet(tmp_path / "faces.parquet", 0, COUNT, image=cells)
    with pytest.raises(DataError, match=r"faces\.parquet, row 0, is empty \(0 bytes\)"):
        load_data(tmp_path, 16, 0)
    (tmp_path / "faces.parquet").write_bytes(b"version https://git-lfs")
    with pytest.raises(DataError, match=r"faces\.parquet cannot be read as parquet .*; fetch it again"):
        read_index(tmp_path)


def test_parquet_without_images_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"caption": ["a face"] * COUNT}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"0 columns may hold images, of caption; needs a column `image`"):
        read_index(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DataError, match=r"holds parquet files, which need pyarrow .*; pip install 'dfc-vae\[parquet\]'"
    ):
        read_index(tmp_path)


# The command line


def test_the_flags_reach_the_run_and_its_judgement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lfw(tmp_path / "set")
    names = read_index(root).files
    table = csv_for(tmp_path / "labels.csv", [f"{name},{row % 2}" for row, name in enumerate(names)])
    (root / names[0]).write_bytes(b"")
    run = tmp_path / "run"
    flags = ["train", "--preset", "plain", "--data", str(root), "--out", str(run), "--crop", "0", "--epochs", "1"]
    monkeypatch.chdir(tmp_path)
    flags += ["--labels", table.name, "--split-by", "folder", "--image-size", "32", "--channels", *["8"] * 3]
    assert main([*flags, "--skip-damaged", "1"]) == 0
    config = json.loads((run / "config.json").read_text())
    assert (config["config"]["split_by"], config["config"]["labels"]) == ("folder", str(table))
    assert config["resolved"]["left_out"] == [f"{names[0]} is empty (0 bytes)"]
    assert config["resolved"]["attributes"] == ["Happy"]
    assert sum(config["resolved"]["images"].values()) == len(names) - 1
    assert main([*flags[:5], "--out", str(tmp_path / "b"), "--skip-damaged", "-1"]) == 2
    assert "--skip-damaged -1: must be 0 or a number of images" in capsys.readouterr().err
    monkeypatch.chdir(root)  # the run looks for its labels where they are
    read: dict[str, object] = {}
    monkeypatch.setattr("trainer.data.load_data", lambda *arguments, **options: read.update(options) or sys.exit())
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--data", str(root)])
    assert read == {"labels": table, "split_by": "folder", "skip_damaged": 1}
