"""Which of the export's rooms may import which; read from the source, so imports inside functions count as well."""

import shutil
from pathlib import Path

import pytest
from rooms import Rooms, room
from servers import ROOT

EXPORT = Rooms("export")
TOP = {"build_engines", "command", "errors", "flags", "hub", "retarget", "run", "verify"}
"""Modules that stand in no room."""


def test_no_room_reaches_itself() -> None:
    assert not EXPORT.circles()


def test_a_circle_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "export", tmp_path / "export")
    with (tmp_path / "export" / "graphs" / "names.py").open("a") as names:
        names.write("\n\ndef late() -> None:\n    from export.engines import candidate\n")
    assert set(Rooms("export", tmp_path).circles()) == {"export.graphs", "export.engines"}


def test_every_module_stands_in_a_room() -> None:
    tops = {name for name in EXPORT.modules if name.count(".") == 1 and EXPORT.modules[name].name != "__init__.py"}
    assert tops == {f"export.{name}" for name in TOP}


@pytest.mark.parametrize(
    ("name", "strangers"),
    [
        ("graphs", {"engines", "proof", "bundle", "flags", "run"}),
        ("engines", {"proof", "bundle", "flags", "run"}),
        ("proof", {"bundle", "flags"}),
        ("bundle", {"run"}),
    ],
)
def test_rooms_know_nothing_of_what_is_above_them(name: str, strangers: set[str]) -> None:
    own = {module for module in EXPORT.modules if room(module) == f"export.{name}"}
    direct = {room(other) for module in own for other in EXPORT.imports(module) if other in EXPORT.modules}
    assert not direct & {f"export.{other}" for other in strangers}


def test_other_engines_are_made_without_torch() -> None:
    assert "torch" not in EXPORT.closure({"export.retarget", "export.errors", "export.bundle.output"})
    assert "torch" in EXPORT.closure({"export.build_engines"})
