"""Fixtures that several test modules share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import write_tiny_bundle
from servers import ServerProcess, server_of

# Where it is set, as build machines have it, what a command leaves in its buffer would be seen all the same.
os.environ.pop("PYTHONUNBUFFERED", None)
# With it every process would compile what it imports, of PyTorch alone for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Where a script started the tests in the background it is ignored, and commands are to be interrupted all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose arithmetic is known; not to be changed."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server of the tiny bundle, shared by all tests that leave it as it is."""
    with server_of(tiny_bundle, tmp_path_factory.mktemp("server")) as process:
        yield process
