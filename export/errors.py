"""The errors of the export, and what its commands make of them: one line and an exit code."""

from __future__ import annotations

import sys

from engine.errors import EngineError, ParityError
from trainer.errors import TrainerError


class InputError(RuntimeError):
    """A flag or a folder that cannot be used. The message names it, its value and the mend."""


class RewriteError(ParityError):
    """A rewrite that is meant to be exact, and isn't: a fault of this program, so no other candidate is tried."""


FAILURES = (ParityError, InputError, TrainerError, EngineError, OSError, KeyboardInterrupt)
"""What a command reports in one line; anything else is a fault of this program and shows its traceback."""


def report(error: BaseException, outcome: str = "") -> int:
    """Prints `error: ...` on stderr, in one line.

    Args:
        error: One of `FAILURES`.
        outcome: What follows from it where the error itself does not say: "no bundle was written". Input that cannot
            be used needs none.

    Returns:
        The exit code. 1: engines beyond the tolerances. 130: interrupted. 2: anything else, which is unusable input.
    """
    code = 1 if isinstance(error, ParityError) else 130 if isinstance(error, KeyboardInterrupt) else 2
    message = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
    ending = f"; {outcome}" if outcome and code != 2 else ""
    print(f"error: {message or type(error).__name__}{ending}", file=sys.stderr)
    return code
