"""The wheel, installed by itself: its commands work wherever one stands, also beside a folder called `engine`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ROOT

PACKAGES = ("trainer", "export", "engine", "framing", "protos", "quickstart")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel was installed, beside the other packages of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    source, site = folder / "source", folder / "site"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([sys.executable, *install, str(site), str(source)], check=True)
    return site


def test_types_are_installed(installed: Path) -> None:
    assert {path.parent.name for path in installed.glob("*/py.typed")} == {"engine", "framing", "protos"}


def test_the_commands_work_beside_a_folder_called_engine(installed: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('this is another project')")
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def script(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(installed / "bin" / name), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    for name in ("dfcvae", "dfcvae-page", "dfcvae-batch"):
        assert script(name, "--version").stdout.startswith("dfc-vae ")
        assert f"run {name} --help" in script(name, "--nonsense").stderr
    serve = [sys.executable, str(installed / "bin" / "dfcvae-serve"), "--bundle", str(tiny_bundle), "--port", "0"]
    with subprocess.Popen(serve, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("serving dfcvae.v1.LatentEngine on ")
            found = script("dfcvae", "health", "--target", line.split()[-1])
            assert (found.stdout, found.returncode) == ("SERVING\n", 0), found.stderr
            server.terminate()
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
