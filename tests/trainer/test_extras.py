"""Commands where optional packages are missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import require_refused
from servers import ROOT, run_python

from trainer.extras import MODULES, Extra

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def run_without(extra: Extra, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run_python(arguments, folder, MODULES[extra])


@pytest.mark.parametrize(
    "command",
    [
        "-m trainer train --data D --out R",
        "-m trainer evaluate R --data D",
        "-m trainer directions R --data D",
        "-m export.build_engines --run R --out B",
        "-m export.verify B --run R",
        "-m quickstart",
        "benchmarks/training.py",
        "benchmarks/quality.py --data D --out O",
        "benchmarks/latency.py --bundle B --run R",
        "benchmarks/gpu.py pytorch --run R --json F",
    ],
)
def test_commands_that_train_or_export_say_which_extra_to_install(tmp_path: Path, command: str) -> None:
    result = run_without("train", tmp_path, *command.split())
    require_refused(result, "torch is not installed; pip install 'dfc-vae[train]'\n")


@pytest.mark.parametrize(
    "command", ["-m export.retarget B --out O", "benchmarks/gpu.py run --bundle B --out O --report R"]
)
def test_commands_that_make_engines_of_a_bundle_say_which_extra_to_install(tmp_path: Path, command: str) -> None:
    result = run_without("retarget", tmp_path, *command.split())
    require_refused(result, "onnx is not installed; pip install 'dfc-vae[retarget]'\n")


@pytest.mark.parametrize("name", ["load", "soak", "faults", "overload", "fuzz"])
def test_benchmarks_of_the_server_say_which_extra_to_install(tmp_path: Path, name: str) -> None:
    result = run_without("bench", tmp_path, f"benchmarks/{name}.py")
    require_refused(result, "hpack is not installed; pip install 'dfc-vae[bench]'\n")


def test_from_python_the_extra_is_named_too(tmp_path: Path) -> None:
    result = run_without(
        "train", tmp_path, "-c", "import trainer\nfrom trainer import presets\nfrom trainer import VAE"
    )
    assert result.returncode == 1
    assert result.stderr.endswith("ImportError: torch is not installed; pip install 'dfc-vae[train]'\n")


def test_help_and_faces_need_no_extra(tmp_path: Path) -> None:
    result = run_without("train", tmp_path, "-m", "trainer", "directions", "--help")
    assert result.returncode == 0, result.stderr
    arguments = ["-m", "trainer", "faces", str(tmp_path / "faces"), "--count", "10", "--workers", "1"]
    result = run_without("train", tmp_path, *arguments)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("extra", MODULES)
def test_what_is_looked_for_is_what_pyproject_lists(extra: Extra) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    distribution = {"sklearn": "scikit-learn", "torch_fidelity": "torch-fidelity"}
    for name in MODULES[extra]:
        assert any(line.startswith(distribution.get(name, name)) for line in listed)
