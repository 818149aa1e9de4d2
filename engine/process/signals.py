"""Signals, as the events that they ask for."""

import asyncio
import math
import os
import signal
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Shells and `timeout` send a signal to a process and to its group: the same signal so soon after the first is its echo.
_ECHO_S = 0.5

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_received: deque[int] = deque()


class Signals:
    """What was asked for by signals."""

    def __init__(self, grace_s: float) -> None:
        self.stop = asyncio.Event()  # SIGTERM or SIGINT came
        self.force_stop = asyncio.Event()  # and then another
        self.reload = asyncio.Event()  # SIGHUP came; whoever acts on it clears this
        self._loop = asyncio.get_running_loop()
        self._grace_s = grace_s
        self._since = -math.inf

    @property
    def grace_left_s(self) -> float:
        """What is left of the grace, seconds."""
        if self.force_stop.is_set():
            return 0.0
        return max(0.0, self._since + self._grace_s - self._loop.time())

    def dispatch(self, number: int) -> None:
        """Takes a signal by its number."""
        if number == signal.SIGHUP:
            self.reload.set()
        elif not self.stop.is_set():
            self._since = self._loop.time()
            self.stop.set()
        elif self._loop.time() - self._since > _ECHO_S:
            self.force_stop.set()


@contextmanager
def signal_events(grace_s: float) -> Iterator[Signals]:
    """Listens to signals, and ignores them afterwards.

    The event loop's own way would bring their deadly defaults back when the loop is closed, before the process ends.
    """
    asked, loop = Signals(grace_s), asyncio.get_running_loop()
    inbox, outbox = socket.socketpair()
    inbox.setblocking(False)
    outbox.setblocking(False)

    def take() -> None:
        inbox.recv(1024)
        while _received:
            asked.dispatch(_received.popleft())

    loop.add_reader(inbox, take)
    # Only wakes the loop up: a fork inherits it, so a number that is written here may be of a signal to the fork.
    signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    for number in _NUMBERS:
        signal.signal(number, _receive)
        signal.siginterrupt(number, False)  # system calls of other libraries may not know of it
    try:
        yield asked
    finally:
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        loop.remove_reader(inbox)
        inbox.close()
        outbox.close()


def _receive(number: int, _: FrameType | None) -> None:
    _received.append(number)


def _leave_to_parent() -> None:
    """In a fork: signals have their usual effect there, and none in this process."""
    if signal.getsignal(signal.SIGTERM) is _receive:
        signal.set_wakeup_fd(-1)
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_to_parent)
