"""Scripts of benchmarks/ within this process, which has imported what takes seconds."""

from collections.abc import Callable
from importlib import import_module

import pytest
from scripts import Result, call


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs one by its name, with everything named."""
    return lambda name, *arguments: call(import_module(name).main, capsys, *arguments)
