from dataclasses import dataclass

import pytest

from engine.errors import BackendError, BundleError, ParityError
from export import command
from export.errors import InputError
from trainer.errors import RunError


@dataclass(frozen=True)
class Flags:
    """None."""


def run(error: BaseException) -> int:
    """The exit code of a command that fails like this."""

    def work(_: Flags) -> None:
        raise error

    return command.run(Flags, work, [], prog="test", doc="", outcome="no bundle was written")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ParityError("stage engine differs"), 1),
        (InputError("--out x: exists"), 2),
        (RunError("x is not a run folder"), 2),
        (BundleError("x is missing"), 2),
        (BackendError("no driver"), 2),
        (PermissionError(13, "Permission denied", "x"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert run(error) == code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ParityError("stage engine differs"), "error: stage engine differs; no bundle was written\n"),
        (KeyboardInterrupt(), "error: interrupted; no bundle was written\n"),
        (InputError("--out x: exists"), "error: --out x: exists\n"),
        (RunError("x cannot be read:\n  two\n  lines"), "error: x cannot be read: two lines\n"),
        (OSError(), "error: OSError\n"),
    ],
)
def test_a_failure_is_one_line(error: BaseException, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(error)
    assert capsys.readouterr() == ("", line)


def test_a_fault_of_the_program_is_no_failure() -> None:
    for fault in (ZeroDivisionError(), RuntimeError()):
        with pytest.raises(type(fault)):
            run(fault)
