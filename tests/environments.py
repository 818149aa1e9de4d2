"""Other versions that the server has to live with, as `make test` installs them beside the environment of the tests.

The oldest gRPC and protobuf that pyproject.toml allows; the oldest and the newest Python, where this machine has them.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

_FOLDER = Path(sys.prefix) / "oldest"

needs_oldest = pytest.mark.skipif(not _FOLDER.is_dir(), reason="needs the oldest gRPC, which make test installs")


def environment_with_oldest(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for a Python that imports these."""
    others = variables.get("PYTHONPATH")
    return {**variables, "PYTHONPATH": os.pathsep.join([str(_FOLDER), *([others] if others else [])])}


def other_python(version: str) -> str:
    """An interpreter that has what a server and a client need; skips the test where there is none."""
    python = Path(sys.prefix) / f"python{version}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs Python {version}, which make test looks for in the PATH and in pyenv's folder")
    return str(python)
