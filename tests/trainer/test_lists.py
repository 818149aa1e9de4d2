"""Lists of labels as spreadsheets, pandas and other machines write them."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from trainer.data import read_index
from trainer.errors import DataError

NAMES = [f"{number:02d}.png" for number in range(20)]
ROWS = [f"{name},{row % 2}" for row, name in enumerate(NAMES)]


def photos(folder: Path, names: list[str] = NAMES) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def table(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return path


def test_rows_of_empty_cells_are_blank(tmp_path: Path) -> None:
    csv = table(tmp_path / "sheet.csv", ",", "file,Smiling", ",", *ROWS, ",", " , ", ",")
    index = read_index(photos(tmp_path / "set"), labels=csv)
    assert index.labels[:, 0].tolist() == [row % 2 == 1 for row in range(20)]


@pytest.mark.parametrize(
    ("header", "row", "found"),
    [
        (",file,Smiling", "{number},{name},1", "'file' is column 2"),
        ("Smiling,image_id", "1,{name}", "'image_id' is column 2"),
    ],
)
def test_names_must_come_first(tmp_path: Path, header: str, row: str, found: str) -> None:
    rows = [row.format(number=number, name=name) for number, name in enumerate(NAMES)]
    with pytest.raises(DataError, match=rf"line 1: {found}; the images' names must come first, as in `file,Smiling`"):
        read_index(photos(tmp_path / "set"), labels=table(tmp_path / "frame.csv", header, *rows))


@pytest.mark.parametrize("value", ["true?", "1.0", "yes", ""])
def test_what_values_must_be_is_said(tmp_path: Path, value: str) -> None:
    csv = table(tmp_path / "own.csv", "file,Smiling", f"{NAMES[0]},{value}", *ROWS[1:])
    with pytest.raises(DataError, match="is neither 1 nor 0; write 1 where an image has the attribute and 0 where"):
        read_index(photos(tmp_path / "set"), labels=csv)


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1", "-1"), ("True", "False"), ("TRUE", "FALSE")])
def test_values_are_those_of_celeba_and_of_tables(tmp_path: Path, yes: str, no: str) -> None:
    rows = [f"{name},{yes if number % 3 else no}" for number, name in enumerate(NAMES)]
    index = read_index(photos(tmp_path / "set"), labels=table(tmp_path / "own.csv", "file,Smiling", *rows))
    assert index.labels[:, 0].tolist() == [number % 3 > 0 for number in range(len(NAMES))]


def test_a_column_that_is_no_attribute_is_named(tmp_path: Path) -> None:
    csv = table(tmp_path / "own.csv", "file,Smiling,age", *(f"{row},20" for row in ROWS))
    with pytest.raises(DataError, match=r"'20' of age is neither 1 nor 0; write .*, or leave the column out$"):
        read_index(photos(tmp_path / "set"), labels=csv)


@pytest.mark.parametrize("before", ["", "./", "img_align_celeba/", "{folder}/img_align_celeba/"])
def test_names_may_be_paths_from_the_images_the_data_set_or_the_root(tmp_path: Path, before: str) -> None:
    root = tmp_path / "celeba"
    photos(root / "img_align_celeba")
    table(root / "list_attr_celeba.csv", "image_id,Smiling", *ROWS)
    rows = [f"{before.format(folder=root)}{row}" for row in ROWS]
    index = read_index(root, labels=table(tmp_path / "own.csv", "file,Happy", *rows))
    assert index.labels[:, 0].tolist() == [row.endswith("1") for row in ROWS]


def test_names_match_whatever_form_their_accents_have(tmp_path: Path) -> None:
    apart, composed = (unicodedata.normalize(form, "Zoë") for form in ("NFD", "NFC"))
    names = [*NAMES[:18], f"{apart}1.png", f"{composed}2.png"]
    rows = [*ROWS[:18], f"{composed}1.png,1", f"{apart}2.png,1"]
    index = read_index(photos(tmp_path / "set", names), labels=table(tmp_path / "own.csv", "file,Smiling", *rows))
    assert index.labels[-2:, 0].all()


def test_a_name_may_hold_what_some_take_for_the_end_of_a_line(tmp_path: Path) -> None:
    names = [f"a\u2028b\x0b{name}" for name in NAMES]
    csv = table(tmp_path / "own.csv", "file,Smiling", *(f"{name},1" for name in names))
    assert read_index(photos(tmp_path / "set", names), labels=csv).labels.all()


def test_another_encoding_is_told_from_damage(tmp_path: Path) -> None:
    csv = table(tmp_path / "own.csv", "file,Smiling", *ROWS, encoding="utf-16")
    with pytest.raises(DataError, match=r"own\.csv cannot be read as text .*; restore it, or save it as UTF-8"):
        read_index(photos(tmp_path / "set"), labels=csv)


def test_labels_that_are_no_file_are_told_from_absent_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"--labels {tmp_path}: is not a file; give a CSV"):
        read_index(photos(tmp_path / "set"), labels=tmp_path)


def test_a_list_that_ends_after_its_count_is_named_by_the_line_that_lacks(tmp_path: Path) -> None:
    photos(tmp_path / "set" / "img_align_celeba")
    table(tmp_path / "set" / "list_attr_celeba.txt", "20")
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt, line 2: needs the attribute names"):
        read_index(tmp_path / "set")
