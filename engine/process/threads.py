"""Functions that one thread runs and the event loop waits for, and which threads go first."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_NICENESS = 10


class Job(Generic[T]):
    """A function and its arguments; call it on the thread that is to run it."""

    def __init__(self, function: Callable[..., T], *arguments: Any) -> None:
        self._function = function
        self._arguments = arguments
        self._done: Future[None] = Future()
        self._result: list[T] = []

    def __call__(self) -> None:
        """Runs the function, unless nobody waits any more; what it raises goes to the one who waits."""
        if not self._done.set_running_or_notify_cancel():
            return
        try:
            self._result.append(self._function(*self._arguments))
        except BaseException as error:  # the thread outlives whatever it runs
            del self._function, self._arguments  # or who has the error would have them: it knows this frame
            self._done.set_exception(error)
        else:
            self._done.set_result(None)

    async def result(self) -> T:
        """Waits for what the function gives."""
        await asyncio.wrap_future(self._done)  # which is part of a cycle, and what it gave would stay for a while
        return self._result.pop()


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Runs what may take long beside the event loop; unlike asyncio's threads, the end of the loop doesn't wait."""
    job = Job(function, *arguments)
    threading.Thread(target=job, name=getattr(function, "__name__", "job"), daemon=True).start()
    return await job.result()


def give_way() -> None:
    """Lowers the priority of this thread, and of those that it starts, below that of the threads that take calls.

    Whoever computes at full load would otherwise keep the calls waiting that are to be refused. Only on Linux
    is niceness that of a thread, and not of the process.
    """
    if sys.platform == "linux":
        os.nice(_NICENESS)


def let_others_finish() -> None:
    """Has this thread, and those that it starts, interrupt nobody the moment they wake, but at the kernel's next tick.

    Calls come in crowds. Where all cores compute, each call would take one from a thread that the others of its batch
    then wait for; so calls wait some milliseconds, and are looked at together.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(OSError):  # some sandboxes forbid it, and all works without
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
