"""Requests to stop, noted until there is a good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Signals:
    """Turns SIGINT and SIGTERM into a number that the loop looks at between two steps.

    Outside the main thread, which alone is interrupted, nothing is noted; nor is a signal that is ignored, as SIGINT is
    in what a script starts in the background.

    Args:
        patient: let a second signal, too, wait for the end of the step; else it acts at once.

    Attributes:
        received: the last signal, or 0.
    """

    def __init__(self, patient: bool = False) -> None:
        self.received = 0
        self._patient = patient
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        if not self._patient:
            signal.signal(signum, self._previous[signum])

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)


@contextmanager
def held_back() -> Iterator[Signals]:
    """Notes SIGINT and SIGTERM, which act when the block ends; the block ends early once one was received.

    For work with a thread pool: an exception in the midst of its methods can leave a lock taken, and its threads wait
    for that without end.

    Raises:
        KeyboardInterrupt: One was received, unless its own handler raises something else.
    """
    with Signals(patient=True) as signals:
        yield signals
    if signals.received:
        signal.raise_signal(signals.received)
        raise KeyboardInterrupt
