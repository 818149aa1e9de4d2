"""Signals, as the events that they ask for."""

import asyncio
import math
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Shells and `timeout` send a signal to a process and to its group: what comes so soon again is no second wish.
_ECHO_S = 0.5


class Signals:
    """What was asked for by signals.

    Args:
        grace_s: How long the end may take.

    Attributes:
        end: SIGTERM or SIGINT came.
        hurry: And then another.
        hang_up: SIGHUP came; whoever heeds it clears this.
    """

    def __init__(self, grace_s: float) -> None:
        self.end = asyncio.Event()
        self.hurry = asyncio.Event()
        self.hang_up = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._grace_s = grace_s
        self._since = -math.inf

    @property
    def grace_left_s(self) -> float:
        """What is left of the grace, seconds."""
        if self.hurry.is_set():
            return 0.0
        return max(0.0, self._since + self._grace_s - self._loop.time())

    def take(self, numbers: bytes) -> None:
        """Takes signals by their numbers."""
        for number in numbers:
            if number == signal.SIGHUP:
                self.hang_up.set()
            elif number in (signal.SIGTERM, signal.SIGINT):
                if not self.end.is_set():
                    self._since = self._loop.time()
                    self.end.set()
                elif self._loop.time() - self._since > _ECHO_S:
                    self.hurry.set()


@contextmanager
def listening(grace_s: float) -> Iterator[Signals]:
    """Listens to signals, and ignores them afterwards.

    The event loop's own way would bring their deadly defaults back when the loop is closed, before the process ends.
    """
    asked, loop = Signals(grace_s), asyncio.get_running_loop()
    inbox, outbox = socket.socketpair()
    inbox.setblocking(False)
    outbox.setblocking(False)
    loop.add_reader(inbox, lambda: asked.take(inbox.recv(1024)))
    # Python writes the number of each signal here that has a handler.
    signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in numbers:
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)  # system calls of other libraries may not know of it
    try:
        yield asked
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        loop.remove_reader(inbox)
        inbox.close()
        outbox.close()
