"""When batches are computed: how long one waits for clients and which needn't, and the threads that compute them."""

import threading
from collections import deque
from collections.abc import Callable
from math import ceil
from time import monotonic
from typing import Any, Protocol, TypeVar

from engine.process.threads import Job, give_way

T = TypeVar("T")

Work = Callable[[], None]

_NEVER = float("inf")

# The longest wait, as a multiple of what the last batch took, and in seconds. With a fast model, answers and requests
# take longer on the wire than the batch did.
_LONGEST = 2.5
_LONGEST_S = 0.02
# Where fewer than this share of the expected requests came, the wait was in vain.
_ENOUGH = 0.75
# Half batches have this many items at least; smaller ones take too long an item.
_LEAST_HALF = 12
# Where threads compute together, even crowds of more than this many items are cut in two.
_LEAST_CROWD = 6
# So many times the largest batch must be under way for the next batch to fill while one is computed.
_ENOUGH_TO_FILL = 1.5


class BatchWindow:
    """Waits for the clients that the last batch answered, and for those that waited beside it.

    Clients that ask again as soon as they are answered come together. One batch of all of them takes less processor
    time than several of a few, and while answers and requests are on the wire, compute doesn't take their processor.
    What counts are requests of whatever size, so a client with several in flight counts as several. A client that is
    alone never waits: it is all that is expected. The window adapts: a wait in vain halves it, another doubles it.
    """

    def __init__(self) -> None:
        self._factor = _LONGEST
        self._until = 0.0
        self.expected = 0  # requests that are worth waiting for: 0, or at least 2

    def computed(self, answered: int, waiting: int, seconds: float, now: float) -> None:
        """A batch was computed.

        `answered` requests are complete with it, whose client still wants them, and `waiting` ones wait now; it took
        `seconds`.
        """
        expected = answered + waiting
        self.expected = expected if expected > 1 else 0
        self._until = now + min(self._factor * seconds, _LONGEST_S)

    def until(self, waiting: int) -> float:
        """Time until which a batch should wait while so many requests do; 0 for one that shouldn't."""
        return self._until if waiting < self.expected else 0.0

    def taken(self, waiting: int, full: bool) -> None:
        """A batch was started while so many requests waited; a full one had no more to wait for."""
        if self.expected:
            came = full or waiting >= _ENOUGH * self.expected
            self._factor = min(_LONGEST, 2 * self._factor + 0.01) if came else self._factor / 2
        self.expected = 0


class HalfBatches:
    """Batches that have nothing to wait for: full ones, and where batches overlap halves.

    Where a crowd is too small to fill a batch while another is computed, one half is computed while the other is on
    the wire, and no core is idle. Where threads compute a batch together, that is worth it for crowds of less than half
    a batch, too: whenever a call takes the core of one thread, the others go on with the other half. Large requests are
    not cut in two for it.
    """

    def __init__(self, largest: int, overlaps: int, together: bool) -> None:
        self._largest = largest
        self._half = largest // 2 if overlaps and largest // 2 >= _LEAST_HALF else 0  # items; 0: there are no halves
        self._together = together
        self._computing = 0  # items of batches that are being computed
        self._crowd = 0.0  # items under way, of late

    def ready(self, waiting: int, requests: int) -> int:
        """Items of the next batch of so many that wait, in so many requests; 0 where it should wait for others."""
        if waiting >= self._largest:
            return self._largest
        half = self._half if self._crowd < _ENOUGH_TO_FILL * self._largest else 0
        if self._together and _LEAST_CROWD < self._crowd < half:
            half = ceil(self._crowd / 2)
        small = waiting <= requests * half // 4
        return half if half and small and waiting >= half else 0

    def taken(self, items: int) -> None:
        """A batch was started."""
        self._computing += items

    def computed(self, items: int, waiting: int) -> None:
        """It was computed, while so many wait now."""
        self._crowd = max(self._computing + waiting, 0.9 * self._crowd)
        self._computing -= items


class Source(Protocol):
    """What a scheduler serves; it calls these methods on its threads, with its lock held."""

    @property
    def overlaps(self) -> int:
        """How many other batches may be computed while one of this source is."""

    def is_ready(self) -> bool:
        """Whether the next batch needs to wait for nothing more, and may be computed beside others."""

    def due(self) -> float:
        """Time (`time.monotonic`) from which a batch may start; infinity while none may."""

    def take(self, now: float) -> Work | None:
        """Puts a batch together; None when nothing is left to compute."""


class Scheduler:
    """Compute threads: one, and as many more as the batches of a source like beside them.

    A thread fetches its next batch when it becomes free, whatever the event loop is busy with. Mostly one of them
    computes. A ready batch of a source that `overlaps` starts while the one before is computed, so that no core is idle
    at the end of a batch or between two. Sources that have work take turns, a batch each, whatever the priorities in
    them. So do functions that are `run`, which have the device to themselves. The lock guards the queues of all
    batchers.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._idle: list[threading.Condition] = []  # one of each thread that waits; who came last goes first
        self._called = False  # one that was woken has not looked yet, and will see all that there is
        self._sources: deque[Source] = deque()  # whose turn is next comes first
        self._jobs: deque[Work] = deque()
        self._batch_is_next = False  # even if a job waits
        # Work starts when nothing else runs, or beside work that is not alone; so `_alone` implies that `_busy` is 1.
        # A thread that becomes free looks for its next work itself, so its end wakes no other thread.
        self._busy = 0  # threads that run something
        self._alone = False  # what runs wants nothing beside it
        self._closing = False
        self._threads = 0
        self._start_threads(1)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs `function` on a compute thread, alone, after at most one more batch than those in progress."""
        job = Job(function, *arguments)
        with self.lock:
            if self._closing:
                raise RuntimeError("the scheduler is closed")
            self._jobs.append(job)
            self.wake()
        return await job.result()

    def attach(self, source: Source) -> None:
        """Serves a batcher from now on."""
        with self.lock:
            self._sources.append(source)
        self._start_threads(1 + source.overlaps)

    def detach(self, source: Source) -> None:
        """Serves a batcher no more; it may have been detached before."""
        with self.lock:
            if source in self._sources:
                self._sources.remove(source)

    def wake(self, ready: bool = False) -> None:
        """Tells a thread, with `lock` held, that a batch may be due, and whether it is ready.

        The one that computed last: its core has what it needs, and the backend's own threads are on the others.
        """
        if self._idle and not self._called and (ready or not self._busy):
            self._called = True
            self._idle.pop().notify()

    def close(self) -> None:
        """Ends the threads after what they are running, which it doesn't wait for; batchers are closed before."""
        with self.lock:
            self._closing = True
            self._wake_all()

    def _start_threads(self, wanted: int) -> None:
        for number in range(self._threads, wanted):
            threading.Thread(target=self._work, name=f"compute-{number}", daemon=True).start()
        self._threads = max(self._threads, wanted)

    def _work(self) -> None:
        give_way()
        ran = False
        while work := self._next(ran):
            work()
            ran = True
            del work  # holds a batch's arrays

    def _next(self, ran: bool) -> Work | None:
        """Waits for something to run, by a thread that `ran` something before; None when the scheduler was closed."""
        with self.lock:
            if ran:
                self._busy -= 1
                self._alone = False
            while True:
                due = _NEVER
                if not self._alone:
                    if self._batch_is_next or not self._jobs:
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
                    self._wake_all()  # those who waited for the last job's end
                    return None
                self._wait(None if due == _NEVER else max(0.0, due - monotonic()))

    def _wait(self, seconds: float | None) -> None:
        """Waits, with `lock` held, until somebody wakes this thread, at most so long."""
        woken = threading.Condition(self.lock)
        self._idle.append(woken)
        woken.wait(seconds)
        if woken in self._idle:
            self._idle.remove(woken)
        else:
            self._called = False

    def _wake_all(self) -> None:
        while self._idle:
            self._idle.pop().notify()

    def _next_batch(self) -> tuple[Work | None, float]:
        """A batch of the source whose turn it is, or None and when there may be one."""
        now, soonest = monotonic(), _NEVER
        for _ in range(len(self._sources)):
            source = self._sources[0]
            due = source.due()
            if due <= now and self._busy and not (self._busy <= source.overlaps and source.is_ready()):
                return None, _NEVER  # its turn comes when the device is free, and nobody goes before
            self._sources.rotate(-1)
            if due > now:
                soonest = min(soonest, due)
            elif work := source.take(now):
                self._alone = not source.overlaps
                if not self._alone and any(other.is_ready() for other in self._sources):
                    self.wake(ready=True)  # another thread, for the next one
                return work, now
        return None, soonest
