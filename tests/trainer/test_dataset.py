from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from framing import Frame, prepare
from trainer.data import FaceData, load_data, read_index
from trainer.data.celeba import ATTRIBUTES as ATTRIBUTES_FILE
from trainer.data.celeba import IMAGES, PARTITION
from trainer.errors import ConfigError, DataError
from trainer.faces import ATTRIBUTES


def edit_lines(path: Path, change: dict[int, str | None]) -> None:
    """Replaces lines by number (from 1); None removes."""
    lines: list[str | None] = list(path.read_text().splitlines())
    for number, text in change.items():
        lines[number - 1] = text
    path.write_text("\n".join(line for line in lines if line is not None) + "\n")


def test_labels_splits_and_images_line_up(faces: Path, data: FaceData) -> None:
    assert data.index.attributes == ATTRIBUTES
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [160, 20, 20]
    cells = (faces / ATTRIBUTES_FILE).read_text().splitlines()[2 + 17].split()
    assert data.index.files[17] == cells[0]
    assert data.index.labels[17].tolist() == [cell == "1" for cell in cells[1:]]
    assert data.images.shape == (200, 32, 32, 3)


def test_images_are_prepared_as_in_the_seed_document_and_as_the_server_does(faces: Path, data: FaceData) -> None:
    seed = Compose([CenterCrop(148), Resize(32)])
    for row in (0, 55, 199):
        image = Image.open(faces / IMAGES / data.index.files[row])
        assert np.array_equal(data.images[row], np.asarray(seed(image)))
        assert np.array_equal(data.images[row], prepare(image, Frame(32, 148)))


def test_absent_attributes_are_fine(broken: Path) -> None:
    path = broken / ATTRIBUTES_FILE
    rows = path.read_text().splitlines()
    two = [rows[0], "Smiling Eyeglasses", *(" ".join(row.split()[:3]) for row in rows[2:])]
    path.write_text("\n".join(two) + "\n")
    index = read_index(broken)
    assert index.attributes == ("Smiling", "Eyeglasses")
    assert index.labels.shape == (200, 2)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({10: "000008.jpg 1 -1 1"}, ["line 10", "000008.jpg", "3 values", f"{len(ATTRIBUTES)} attributes"]),
        ({12: "000010.jpg" + " 0" * len(ATTRIBUTES)}, ["line 12", "is neither 1 nor -1"]),
        ({202: None}, ["announces 200", "199 rows"]),
        ({1: "many"}, ["line 1", "'many' is not the number of images"]),
        ({2: "Smiling Smiling"}, ["line 2", "each once"]),
        ({9: "000006.jpg" + " 1" * len(ATTRIBUTES)}, ["000006.jpg 2 times", "keep one line an image"]),
        (dict.fromkeys(range(3, 203)), ["2 line(s)", "needs the count, the attribute names, then images"]),
        (dict.fromkeys(range(3, 203), ""), ["announces 200", "0 rows"]),
        (dict.fromkeys(range(1, 203)), ["is empty; restore it"]),
    ],
)
def test_a_malformed_attribute_list_is_named_with_its_line(
    broken: Path, lines: dict[int, str | None], said: list[str]
) -> None:
    edit_lines(broken / ATTRIBUTES_FILE, lines)
    with pytest.raises(DataError) as caught:
        load_data(broken, 32, 148)
    for words in [ATTRIBUTES_FILE, *said]:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({5: "000005.jpg 3"}, ["line 5", "000005.jpg 3"]),
        ({5: "000005.jpg"}, ["line 5"]),
        ({5: None}, ["000005.jpg, line 7", "no split", "add the line `000005.jpg 0`"]),
        ({5: "000004.jpg 1"}, ["000004.jpg 2 times"]),
        ({number: f"{number:06d}.jpg 0" for number in range(161, 201)}, ["val split"]),
    ],
)
def test_a_malformed_partition_is_named_with_its_line(
    broken: Path, lines: dict[int, str | None], said: list[str]
) -> None:
    edit_lines(broken / PARTITION, lines)
    with pytest.raises(DataError) as caught:
        load_data(broken, 32, 148)
    for words in [PARTITION, *said]:
        assert words in str(caught.value)


@pytest.mark.parametrize("name", [ATTRIBUTES_FILE, PARTITION])
def test_lists_of_other_systems_are_read_alike(broken: Path, name: str) -> None:
    """Windows line ends, a byte order mark, trailing spaces, tabs and blank lines change nothing."""
    before = read_index(broken)
    lines = (broken / name).read_text().splitlines()
    dressed = "\r\n".join(line.replace(" ", "\t", 1) + "  " for line in [*lines, "", "   "])
    (broken / name).write_bytes(b"\xef\xbb\xbf" + dressed.encode())
    after = read_index(broken)
    assert after.files == before.files
    assert after.attributes == before.attributes
    assert np.array_equal(after.labels, before.labels)
    assert np.array_equal(after.splits, before.splits)


@pytest.mark.parametrize("name", [ATTRIBUTES_FILE, PARTITION])
@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty; restore it"), (b" \r\n\n", "is empty"), (bytes(range(256)), "cannot be read as text")],
)
def test_a_list_without_text_is_named(broken: Path, name: str, content: bytes, said: str) -> None:
    (broken / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} {said}"):
        read_index(broken)


def test_missing_images_are_counted_and_the_first_named_with_its_line(broken: Path) -> None:
    edit_lines(broken / ATTRIBUTES_FILE, {2: (broken / ATTRIBUTES_FILE).read_text().splitlines()[1] + "\n\n"})
    for name in ("000042.jpg", "000043.jpg", "000200.jpg"):
        (broken / IMAGES / name).unlink()
    with pytest.raises(DataError, match=r"000042\.jpg is not in .*, nor are 2 others, though line 46 .*restore it, or"):
        load_data(broken, 32, 148)


@pytest.mark.parametrize("name", [ATTRIBUTES_FILE, IMAGES])
def test_half_of_celebas_layout_is_no_plain_folder(broken: Path, name: str) -> None:
    (broken / name).rename(broken.parent / name)
    with pytest.raises(DataError, match=f"{name}/? is missing; CelebA's layout is"):
        read_index(broken)


def test_a_limited_train_split_is_part_of_a_larger_one_and_leaves_the_others_alone(faces: Path) -> None:
    index = read_index(faces)
    few, more = index.limited(10), index.limited(50)
    assert len(few.rows("train")) == 10
    assert set(few.rows("train")) < set(more.rows("train")) < set(index.rows("train"))
    assert few.rows("train").tolist() != index.rows("train")[:10].tolist()
    for split in ("val", "test"):
        assert np.array_equal(few.rows(split), index.rows(split))
    assert index.limited(0) is index
    with pytest.raises(ConfigError, match=r"--limit-train 161: .* has 160 training images; give that many at most"):
        index.limited(161)
