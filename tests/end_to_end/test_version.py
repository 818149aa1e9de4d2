"""Commands tell their version."""

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
