"""benchmarks/peers: this project's server through the whole command, and what its table is made of."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from servers import ROOT

FOLDER = ROOT / "benchmarks" / "peers"


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
