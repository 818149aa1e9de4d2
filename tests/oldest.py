"""The oldest gRPC and protobuf that pyproject.toml allows, as `make test` installs them beside those of the lock."""

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
