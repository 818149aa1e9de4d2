"""How a command that writes is interrupted: by SIGINT as by SIGTERM."""

from __future__ import annotations

import signal
from types import FrameType


def interruptible() -> list[int]:
    """Makes both signals raise KeyboardInterrupt in the main thread.

    Returns:
        The signals that came; to be looked at again at the end, since the exception is lost if the signal meets a
        finaliser of a library.
    """
    received: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    return received
