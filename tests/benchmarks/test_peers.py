"""benchmarks/peers: this project's server through the whole command, and what its table is made of."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import ModuleType

import pytest
from servers import ROOT

FOLDER = ROOT / "benchmarks" / "peers"
OPEN_BOTH = """import os, sys
before = {*sys.modules}
from model import Model
for engine in "01":
    os.environ["PEER_ENGINE"] = engine
    Model()
print(*{name.partition(".")[0] for name in {*sys.modules} - before})"""


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_command", FOLDER / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_our_server_is_measured(peers: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    if not shutil.which("h2load"):
        pytest.skip("needs h2load")
    flags = ["--bundle", str(tiny_bundle), "--environments", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    assert peers.main([*flags, "--concurrency", "2", "--seconds", "1"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["peers"]
    assert [*figures] == ["ours"]  # no other's environment is there
    assert figures["ours"]["loads"][0]["rate"] > 0
    assert figures["ours"]["loads"][0]["failed"] == 0


def test_bad_input_is_named(
    peers: ModuleType, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--bundle", str(tiny_bundle), "--environments", str(tmp_path)]
    assert peers.main([*flags, "--seconds", "0"]) == 2
    assert "--seconds 0" in capsys.readouterr().err
    if shutil.which("h2load"):
        assert peers.main([*flags, "--peers", "apache"]) == 2
        assert "--peers apache" in capsys.readouterr().err


def test_every_peer_has_a_server_and_an_environment(peers: ModuleType) -> None:
    environments = (FOLDER / "environments.sh").read_text()
    for peer in peers.PEERS.values():
        command, variables = peer.command(Path("environments"), Path("bundle"), 1234)
        assert "1234" in (*command, variables["PEER_PORT"])
        if peer.environment:
            assert peer.environment in environments
            assert (FOLDER / "servers" / f"{peer.environment}_server.py").exists()


def test_environments_have_what_models_import(tiny_bundle: Path) -> None:
    listed = re.search(r'^engine="(.*)"$', (FOLDER / "environments.sh").read_text(), re.MULTILINE)
    assert listed is not None
    variables = {
        "PEER_BUNDLE": str(tiny_bundle),
        "PEER_PORT": "1",
        "PEER_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{FOLDER / 'servers'}",
    }
    opened = subprocess.run(
        [sys.executable, "-c", OPEN_BOTH], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    known = packages_distributions()
    imported = {normal(name) for module in opened.stdout.split() for name in known.get(module, ())}
    assert imported - with_requirements(listed[1].split()) == {"dfc-vae"}


def with_requirements(names: Iterable[str]) -> set[str]:
    """Names of installed packages and of all that they require."""
    found, open_ones = set[str](), {*names}
    while open_ones:
        name = normal(open_ones.pop())
        if name in found:
            continue
        found.add(name)
        with suppress(PackageNotFoundError):  # for another Python, or another machine
            required = [one for one in requires(name) or () if "extra ==" not in one]
            open_ones |= {re.split(r"[^\w.-]", one)[0] for one in required}
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
