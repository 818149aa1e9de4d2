"""What all command lines have in common."""

import re
import subprocess
import sys

import pytest
from servers import ROOT

COMMANDS = ("engine", "engine.client", "engine.page", "export.verify", "trainer")  # those that start fast


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_tells_its_version(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", command, "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"dfc-vae \d+\.\d+\.\d+\S*\n", result.stdout)


@pytest.mark.parametrize(
    "command",
    [
        "engine --bundle=B --tls-cert=",
        "engine.batch IN OUT=",
        "engine.client info --tls-ca=",
        "engine.page --tls-ca=",
        "export.verify B --run=",
        "trainer directions RUN --data=",
    ],
)
def test_an_empty_path_is_not_the_current_folder(command: str) -> None:
    words = ["" if word == "OUT=" else word for word in command.split()]
    result = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert 'the path is empty, ""' in result.stderr
