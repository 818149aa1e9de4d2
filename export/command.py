"""How a command runs: its flags, how it is interrupted, errors as one line, exit codes."""

import math
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeVar

from engine.command_line import read_flags
from engine.errors import EngineError, ParityError
from export.errors import InputError
from trainer.errors import TrainerError

Config = TypeVar("Config")

MOST_THREADS = 4096
"""More than any machine has cores for."""


def run(
    config: type[Config],
    work: Callable[[Config], object],
    arguments: Sequence[str] | None = None,
    *,
    prog: str,
    doc: str | None,
    outcome: str = "",
) -> int:
    """Runs a command.

    Args:
        config: Dataclass of the flags; a file `json` among them must have its folder, and be none.
        work: What is done with them; False: something that it checked didn't hold.
        arguments: Of the command line; None: this process's own.
        prog: How the command is called, for `--help`, which says `doc` as well.
        doc: What it does.
        outcome: What follows from a failure that is no unusable input, such as "no bundle was written".

    Returns:
        Exit code: 0 done, 1 something didn't hold or is beyond the tolerances, 2 unusable input, 130 interrupted.
    """
    try:
        flags = read_flags(config, prog, doc, arguments)
        path = getattr(flags, "json", None)
        if path is not None and not path.parent.is_dir():
            raise InputError(f"--json {path}: there is no folder {path.parent}; make it first")
        if path is not None and path.is_dir():
            raise InputError(f"--json {path}: is a folder; name a file, for example {path / 'figures.json'}")
        return 1 if work(flags) is False else 0
    # Anything else is a fault of this program, and shows its traceback.
    except (ParityError, InputError, TrainerError, EngineError, OSError, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        code = 130 if interrupted else 1 if isinstance(error, ParityError) else 2
        message = "interrupted" if interrupted else " ".join(str(error).split()) or type(error).__name__
        ending = f"; {outcome}" if outcome and code != 2 else ""
        print(f"error: {message}{ending}", file=sys.stderr)
        return code


def require_between(flag: str, value: float | None, least: int, most: float = math.inf) -> None:
    """Lets a flag's number pass that is finite and within its bounds, or None.

    Raises:
        InputError: it is not.
    """
    if value is None or (least <= value <= most and math.isfinite(value)):
        return
    finite = ", and finite" if isinstance(value, float) else ""
    rule = f"at most {most}" if value > most else f"at least {least}{finite}"
    raise InputError(f"--{flag} {value}: must be {rule}")


def interruptible() -> Callable[[], bool]:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, unless they are ignored.

    Returns:
        Whether one came; to be asked again at the end, since the exception is lost if the signal meets a finaliser of
        a library.
    """
    received: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as SIGINT is in what a script starts in the background
            signal.signal(signum, interrupt)
    return lambda: bool(received)
