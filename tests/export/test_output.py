import errno
import sys
from pathlib import Path

import pytest
from machine import on_disks

from export.bundle.output import check_apart, check_free, check_place, publish, require_space, staging
from export.errors import InputError

# A disk


def test_room_is_asked_for_in_advance(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there" / "yet", 1000)
    require_space(Path("/proc"), 1000)  # a file system that does not say
    with pytest.raises(
        InputError, match=r"bundle: needs about 1,000,000,000\.0 MB, and its disk has [\d,.]+ MB free; free some space"
    ):
        require_space(tmp_path / "bundle", 10**15)


@pytest.mark.parametrize("library", ["python", "safetensors"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, library: str) -> None:
    write = {
        "python": "(folder / 'b').write_bytes(bytes(2_000_000))",
        "safetensors": "save_file({'b': numpy.zeros(500_000)}, folder / 'b')",
    }[library]
    code = f"""
import numpy
from pathlib import Path
from safetensors.numpy import save_file
from export.errors import InputError
from export.bundle.output import staging
try:
    with staging(Path("disk/new/bundle")) as folder:
        (folder / "a").write_bytes(bytes(300_000))
        {write}
except InputError as error:
    print(error)
print(list(Path("disk").iterdir()))
"""
    result = on_disks(tmp_path, {"disk": "size=1000k"}, [sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    message, left = result.stdout.splitlines()
    assert message.startswith("--out disk/new/bundle: the disk is full (")
    assert "No space left on device" in message
    assert message.endswith(" MB of it; free some space, or choose another place")
    assert left == "[]"


def test_other_failures_while_writing_keep_their_own_words(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken") as caught, staging(tmp_path / "bundle"):
        raise OSError(errno.EIO, "broken")
    assert not isinstance(caught.value, InputError)
    with pytest.raises(ZeroDivisionError), staging(tmp_path / "new" / "bundle") as folder:
        (folder / "a").write_bytes(bytes(1 // len(list(folder.iterdir()))))
    assert list(tmp_path.iterdir()) == []


# A name


def test_what_is_published_stays_with_its_new_parents(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "bundle"
    with staging(out) as folder:
        (folder / "file").write_text("x")
        publish(folder, out)
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    assert (out / "file").read_text() == "x"


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    with staging(tmp_path / "bundle") as first, staging(tmp_path / "bundle") as second:
        assert first != second


BUNDLE = '{"format_version": 1, "files": {}}'


def test_publishing_replaces_a_bundle(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    for text in ("old", "new"):
        with staging(out) as folder:
            (folder / "manifest.json").write_text(BUNDLE)
            (folder / "file").write_text(text)
            publish(folder, out)
    assert (out / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("content", "force"), [("theirs", True), ("theirs", False), (BUNDLE, False)])
def test_what_another_made_meanwhile_stays(tmp_path: Path, content: str, force: bool) -> None:
    out = tmp_path / "bundle"
    with staging(out) as folder:
        out.mkdir()
        (out / "manifest.json").write_text(content)
        with pytest.raises(InputError, match=r"--out .*bundle: was made by somebody else meanwhile"):
            publish(folder, out, force=force)
    assert (out / "manifest.json").read_text() == content
    assert list(tmp_path.iterdir()) == [out]


def test_two_places_lie_apart(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    check_apart(out, tmp_path / "models", "--triton")
    check_apart(out, tmp_path / "bundles", "--triton")
    for other in (out, out / "models", tmp_path, tmp_path / "x" / ".." / "bundle"):
        with pytest.raises(InputError, match=r"--triton .*: lies in --out .*, or that in it"):
            check_apart(out, other, "--triton")


@pytest.mark.parametrize("name", ["", ".", "/", "nowhere/.."])
def test_what_names_no_new_folder(name: str) -> None:
    with pytest.raises(InputError, match="choose another place"):
        check_place(Path(name), force=False)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written to \(File name too long\)"):
        check_place(tmp_path / ("x" * 300), force=False)
    with (
        pytest.raises(InputError, match=r"cannot be written to \(File name too long\)"),
        staging(tmp_path / ("x" * 250)),
    ):
        pass


def test_a_place_inside_a_file_is_found_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file cannot be written to \(Not a directory\); choose another place"):
        check_place(tmp_path / "file" / "deep" / "bundle", force=False)


def test_a_link_to_a_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text(BUNDLE)
    (tmp_path / "link").symlink_to("bundle")
    check_place(tmp_path / "bundle", force=True)
    with pytest.raises(InputError, match=rf"is a link to a bundle; name the folder itself, {tmp_path}/bundle"):
        check_place(tmp_path / "link", force=True)


def test_nothing_may_be_at_a_free_place(tmp_path: Path) -> None:
    check_free(tmp_path / "new" / "folder", "--triton")
    with pytest.raises(InputError, match=r"--triton .*: exists already; choose another place"):
        check_free(tmp_path, "--triton")
