"""What docs/architecture.md says of additions: a row, or a function, and the rest of the project knows it."""

import json
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from bundles import reseal

from engine.backends import BACKENDS, CPU
from engine.backends.registry import Row
from engine.bundle import Bundle
from engine.proof.machine import machine_of
from engine.proof.opening import open_proven
from export.engines.support import Support
from export.flags import EngineFlags
from trainer.__main__ import main
from trainer.config import TrainConfig
from trainer.presets import PRESETS, plain


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Row:
    """A backend of one's own: a module and a row, as an edit of the registry would add them."""
    module = types.ModuleType("own_backend")
    inner = BACKENDS["onnxruntime"].load(CPU)
    module.OwnBackend = type("OwnBackend", (inner,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_backend", module)
    row = Row("own", "Own", "own_backend", "OwnBackend", {CPU: ("fp32",)}, {CPU: "own"}, ("numpy",))
    monkeypatch.setitem(BACKENDS, "own", row)
    return row


def test_a_backend_is_a_row(own: Row, tiny_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "backend": "own"}))
    reseal(path)
    bundle = Bundle.load(path)
    engine = open_proven(bundle, 1)
    assert type(engine).__name__ == "OwnBackend"
    assert engine.decode(np.zeros((1, bundle.manifest.latent_dim), np.float32)).shape[0] == 1
    assert machine_of(bundle.manifest, 1)["numpy"] == np.__version__
    assert [option for option in Support.find().here if option.backend == "own"] == [("own", CPU, "fp32")]


def test_every_backend_of_the_registry_can_be_asked_for() -> None:
    assert get_args(get_type_hints(EngineFlags)["backend"]) == ("auto", *BACKENDS)


def test_a_preset_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def mine() -> TrainConfig:
        """Mine, with a rate of its own."""
        return replace(plain(), preset="mine", lr=0.0123)

    monkeypatch.setitem(PRESETS, "mine", mine)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--preset", "mine", "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "- mine: Mine, with a rate of its own." in said
    assert "(default: 0.0123)" in said
