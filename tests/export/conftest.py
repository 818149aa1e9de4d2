"""A run that the tests of the export share, and the command that builds."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builds import FLAGS
from runs import write_run
from scripts import Result, call

from export import build_engines


@pytest.fixture(scope="session", autouse=True)
def few_proof_images() -> Iterator[None]:
    """A proof of few images: engines answer each of them in batches of every size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_engines, "PROOF_IMAGES", 8)
        yield


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that no test changes, and that anybody may read."""
    run = write_run(tmp_path_factory.mktemp("shared") / "run")
    for path in run.iterdir():
        path.chmod(0o644)
    return run


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    """A run folder for one test to spoil."""
    return Path(shutil.copytree(shared_run, tmp_path / "run"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """The command that builds, with everything named."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield lambda *arguments: call(build_engines.main, capsys, *FLAGS, *arguments)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
