"""The compute device: what serves several batchers in turn."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Work = Callable[[], None]

_NEVER = float("inf")


class Source(Protocol):
    """What a device serves; the device calls its methods on its threads with its lock held."""

    def due(self, settled: bool) -> float:
        """Time (`time.monotonic`) from which a batch may start; infinity when there is nothing to compute.

        Args:
            settled: False: only a full batch is worth starting.
        """

    @property
    def overlaps(self) -> bool:
        """Whether a batch may be started while another one is computed."""

    def take(self, now: float) -> Work | None:
        """Puts a batch together; None when nothing is left to compute."""


class Device:
    """Two compute threads, of which mostly one computes.

    A thread itself fetches its next batch when it becomes free: a full one at once, whatever the event loop is
    busy with; a smaller one when the loop has handed out the results of the last, so that the next requests of the
    same clients can be in it. A full batch of a batcher that `overlaps` starts while the one before is computed, so
    that no core waits for the other's share of it, nor for Python between the two (1.1 times the rate of 32-image
    requests, on two cores). Batchers that have work take turns, a batch each, whatever the priorities in them; so
    does what is `run`, which is alone.

    Attributes:
        lock: Guards the queues of all batchers of this device.
        free: `async with device.free` takes a turn that lasts until its end: batches wait, `run` goes on.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.Lock())
        self.free = _Hold(self)
        self._sources: deque[Source] = deque()
        self._jobs: deque[Work] = deque()
        self._batch_is_next = False
        self._unsettled = 0  # batches whose results the event loop has not handed out
        self._busy = 0  # threads that run something
        self._idle = 0  # threads that wait
        self._alone = False  # what runs wants nothing beside it
        self._held = False
        self._closing = False
        self._threads = [threading.Thread(target=self._work, name=f"compute-{i}", daemon=True) for i in range(2)]
        for thread in self._threads:
            thread.start()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs `function` on the compute thread, after at most one more batch than the one in progress."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # the thread outlives whatever it runs
                future.set_exception(error)

        with self.lock:
            if self._closing:
                raise RuntimeError("the device is closed")
            self._jobs.append(job)
            self.lock.notify()
        return await asyncio.wrap_future(future)

    def attach(self, source: Source) -> None:
        """Serves a batcher from now on."""
        with self.lock:
            self._sources.append(source)

    def detach(self, source: Source) -> None:
        """Serves a batcher no more; it may have been detached before."""
        with self.lock:
            if source in self._sources:
                self._sources.remove(source)

    def wake(self) -> None:
        """Tells the thread, with `lock` held, that a batch may be due."""
        if self._idle:
            self.lock.notify()

    def computed(self) -> None:
        """Tells that the results of a batch are on their way to the event loop; a `settle` follows."""
        with self.lock:
            self._unsettled += 1

    def settle(self) -> None:
        """Tells that they were handed out."""
        with self.lock:
            self._unsettled -= 1
            self.wake()

    def hold(self, held: bool) -> None:
        """Keeps batches from starting, or lets them."""
        with self.lock:
            self._held = held
            self.lock.notify_all()

    def close(self) -> None:
        """Ends the threads, after what they are running; batchers are closed before."""
        with self.lock:
            self._closing = True
            self.lock.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while work := self._next():
            try:
                work()
            finally:
                del work  # holds a batch's arrays
                with self.lock:
                    self._busy -= 1
                    self._alone = False
                    self.lock.notify_all()

    def _next(self) -> Work | None:
        """Waits for something to run; None when the device was closed."""
        with self.lock:
            while True:
                due = _NEVER
                if not self._alone:
                    if not self._held and (self._batch_is_next or not self._jobs):
                        work, due = self._next_batch()
                        if work:
                            self._batch_is_next = False
                            self._busy += 1
                            return work
                    if self._jobs and not self._busy:
                        self._batch_is_next = True
                        self._alone = True
                        self._busy += 1
                        return self._jobs.popleft()
                if self._closing and not self._jobs:
                    return None
                self._idle += 1
                self.lock.wait(None if due == _NEVER else max(0.0, due - monotonic()))
                self._idle -= 1

    def _next_batch(self) -> tuple[Work | None, float]:
        """A batch of the batcher whose turn it is, or None and when there may be one."""
        now, due, settled = monotonic(), _NEVER, not self._unsettled
        for _ in range(len(self._sources)):
            source = self._sources[0]
            if self._busy and source.due(True) <= now and not (source.overlaps and source.due(False) <= now):
                return None, _NEVER  # its turn comes when the device is free, and nobody goes before
            self._sources.rotate(-1)
            if source.due(settled) <= now and (work := source.take(now)):
                self._alone = not source.overlaps
                if source.due(False) <= now:
                    self.wake()  # another thread, for the next one
                return work, now
            due = min(due, source.due(settled))
        return None, due


class _Hold:
    """`Device.free`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._turn = asyncio.Lock()
        self._wanted = False

    async def __aenter__(self) -> None:
        await self._turn.acquire()
        self._wanted = True
        try:
            await self._device.run(self._take)
        except BaseException:
            self._release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _take(self) -> None:
        self._device.hold(True)
        if not self._wanted:  # the wait for this turn was cancelled meanwhile
            self._device.hold(False)

    def _release(self) -> None:
        self._wanted = False
        self._device.hold(False)
        self._turn.release()
