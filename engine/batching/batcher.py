"""Dynamic batching: requests of all clients share batches.

A `Batcher` serves one graph. Several share one `Scheduler`, whose threads compute their batches in turn. A batch
is put together at the moment the device becomes free for it, so it holds all that arrived meanwhile, in the order that
`engine.batching.fair_queue` describes. A full batch starts whatever the event loop is busy with, and where batches
overlap so does half of one; a smaller one when the loop has handed out the batcher's own last results, and after the
wait that `BatchWindow` describes, so that the next requests of the same clients can be in it. Per
request there is one future and a few steps under a lock; per batch one message from a thread to the loop.

Threads: `due` and `take` run on the scheduler's threads, with its lock held, and `_compute` without it. All else runs
on the event loop, which takes that lock to touch the queue. Nobody who holds it takes another lock.
"""

import asyncio
import logging
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.arrays import Array
from engine.batching.fair_queue import FairQueue, Piece, Request
from engine.batching.scheduler import BatchWindow, HalfBatches, Scheduler
from engine.errors import ComputeFailed, DeadlinePassed, InvalidRequest, Overloaded, ShuttingDown

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """Rows start to stop of a batch belong to a request that was submitted with this tag."""

    tag: Any
    start: int
    stop: int


Run = Callable[[Array, Sequence[Part]], tuple[Array, ...]]


class BatchObserver(Protocol):
    """Listens to a batcher; every call comes from the event loop."""

    def waiting(self, items: int) -> None:
        """Items in the queue now."""

    def batch(self, items: int, waits: Sequence[float], seconds: float) -> None:
        """A batch was computed: its size, how long each request in it had waited, and how long it took, seconds."""

    def failed(self) -> None:
        """The backend failed on a batch."""


class Reservation:
    """Room in a queue, held for later. Use it in a `with`: what was not used is free again at the end."""

    def __init__(self, batcher: "Batcher", count: int, client: str) -> None:
        self._batcher = batcher
        self.client = client  # whom it counts for
        self.count = count  # items that there is still room for

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher._release(self, self.count)


class RequestContext(NamedTuple):
    """Whose items they are that are computed, by when, and in which order.

    Attributes:
        deadline: Time of the event loop's clock after which the result is of no use; None for never.
        client: Whom the request counts for; clients get equal shares.
        priority: 1 interactive, 0 normal, -1 background; `engine.batching.fair_queue` has the rule.
        room: That was held for the request; it is taken even while the batcher closes.
    """

    deadline: float | None = None
    client: str = ""
    priority: int = 0
    room: Reservation | None = None


class Batcher:
    """Merges requests of any size into batches of at most `max_batch_size` items, and splits results back.

    Construct it inside a running event loop; all methods belong to that loop.

    Args:
        run: Computes a batch, [n, *item_shape], to a tuple of arrays [n, ...] that are the caller's, on a thread of the
            scheduler; the parts say, in order, which rows belong to which tag. An exception fails the requests in that
            batch and no others.
        max_delay: How long the first item of a batch may wait for others while the device is free, seconds.
        max_queue: Most items that may wait; a request beyond is refused at once.
        overlaps: How many other batches may be computed while `run` is at one.
        together: Whether threads of `run` wait for each other; see `HalfBatches`.
    """

    def __init__(
        self,
        run: Run,
        item_shape: Sequence[int],
        dtype: npt.DTypeLike,
        scheduler: Scheduler,
        *,
        max_batch_size: int,
        observer: BatchObserver,
        max_delay: float = 0.0,
        max_queue: int = 4096,
        overlaps: int = 0,
        together: bool = False,
    ) -> None:
        self._run = run
        self._scheduler = scheduler
        self._max_batch_size = max_batch_size
        self._max_delay = max_delay
        self._max_queue = max_queue
        self._observer = observer
        self.overlaps = overlaps
        self._item_shape, self._dtype = tuple(item_shape), np.dtype(dtype)
        self._buffers = deque(np.empty((max_batch_size, *item_shape), dtype) for _ in range(1 + overlaps))
        self._queue = FairQueue(max_batch_size)
        self._since = 0.0  # when the first item came to an empty queue
        self._window = BatchWindow()
        self._halves = HalfBatches(max_batch_size, overlaps, together)
        self._reserved: Counter[str] = Counter()  # items by client
        # What was taken from the queue, a batch or expired requests, until those who wait for it have seen the outcome.
        self._unsettled = 0
        self._item_s = 0.0  # what an item took of late; 0: nobody knows
        self._ended = 0.0  # the last batch
        self._closing = False
        self._quiet = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        scheduler.attach(self)

    async def submit(self, items: Array, context: RequestContext, *, tag: Any = None) -> tuple[Array, ...]:
        """Computes a request's items, alone or together with those of others.

        Cancelling the call takes the request out of the queue.

        Args:
            items: [n, *item_shape] of the batcher's dtype, C-contiguous, n >= 1; must not change meanwhile.
            context: Its deadline is looked at before each batch.
            tag: Handed to `run` with the request's rows.

        Returns:
            The outputs of `run` for these items, in their order. They may be views of a whole batch and keep it in
            memory: the caller copies what outlives the answer. Most answers are written out at once, and a copy here
            would be their second.

        Raises:
            EngineError: InvalidRequest when the request is larger than the queue, Overloaded when that has no room,
                DeadlinePassed before compute, ShuttingDown when the batcher was closed, ComputeFailed when `run`
                raised.
        """
        if items.shape[1:] != self._item_shape or items.dtype != self._dtype or not len(items):
            raise ValueError(
                f"items must be n >= 1 of {self._dtype} {self._item_shape}, not {items.dtype} {items.shape}"
            )
        deadline, client, priority, room = context
        now = self._loop.time()
        if deadline is not None and deadline <= now:
            raise DeadlinePassed("the deadline passed before the request was queued; allow more time")
        request = Request(items, deadline, now, self._loop.create_future(), tag)
        if room is None:
            self._require_open()
            self.require_room(request.size, client)
        else:
            self._release(room, request.size)
        self._push(request, client, priority)
        try:
            self._observer.waiting(self._queue.waiting)
            return await request.future
        finally:
            if request.taken < request.size:
                self._drop(request)

    def reserve(self, count: int, client: str = "") -> Reservation:
        """Holds room for a later `submit` of up to `count` items, for a client.

        Raises:
            InvalidRequest: When they are more than the queue ever holds.
            Overloaded: When the queue has no room.
            ShuttingDown: When the batcher was closed.
        """
        self._require_open()
        self.require_room(count, client)
        self._reserved[client] += count
        return Reservation(self, count, client)

    def require_room(self, count: int, client: str = "") -> None:
        """Lets `count` more items of a client pass if they fit the queue now. On any thread.

        The last eighth of the queue is for clients that have less than an eighth of it waiting or held: one that sends
        without end must not be why others are refused.

        Raises:
            InvalidRequest: When they are more than the queue ever holds.
            Overloaded: When they don't fit now.
        """
        held = self._queue.waiting + self._reserved.total()
        kept = self._max_queue // 8
        if held + count <= self._max_queue - kept or (not held and count <= self._max_queue):
            return
        if count > self._max_queue:
            raise InvalidRequest(
                f"the request has {count} images or latents; the queue holds at most {self._max_queue}, "
                "send several requests"
            )
        if held + count > self._max_queue:
            reason = f"{count} more don't fit"
        elif self._queue.waiting_of(client) + self._reserved[client] + count > kept:
            reason = f"the last {kept} places are for clients that have fewer waiting"
        else:
            return
        raise Overloaded(
            f"the queue holds {held} of at most {self._max_queue} images, {reason}; "
            "send again after a pause, or to another server",
            retry_after_s=min(max(held * self._item_s, 0.01), 60.0) if self._item_s else 1.0,
            recheck=partial(_recheck, weakref.ref(self), client),
        )

    def hurry(self) -> None:
        """Waits for no more requests from now on, whatever `max_delay` says: hardly any will come."""
        with self._scheduler.lock:
            self._max_delay = 0.0
            self._scheduler.wake()

    async def close(self) -> None:
        """Refuses new requests, and returns when all accepted ones are answered and no reservation is held."""
        with self._scheduler.lock:
            self._closing = True
            self._scheduler.wake()
        while self._has_work():
            self._quiet.clear()
            await self._quiet.wait()
        self._scheduler.detach(self)
        self._buffers.clear()

    def is_ready(self) -> bool:
        """For the scheduler, on its threads: whether a batch can start beside another, or at once."""
        return bool(self._ready_items())

    def due(self) -> float:
        """For the scheduler, on its threads: when the next batch should start."""
        if ready := self._ready_items():
            return 0.0 if ready == self._max_batch_size else self._since + self._max_delay
        if not self._queue.waiting or self._unsettled:
            return float("inf")
        if self._closing:
            return 0.0
        return max(self._since + self._max_delay, self._window.until(self._queue.requests))

    def take(self, now: float) -> Callable[[], None] | None:
        """For the scheduler, on its threads: puts a batch together."""
        requests, ready = self._queue.requests, self._ready_items()
        pieces, expired = self._queue.take(ready or self._max_batch_size, now)
        if expired:
            self._unsettled += 1
            self._call(self._expire, expired)
        if not pieces:
            return None
        self._window.taken(requests, ready > 0)
        self._unsettled += 1
        self._halves.taken(_count(pieces))
        return lambda: self._compute(pieces)

    def _ready_items(self) -> int:
        return self._halves.ready(self._queue.waiting, self._queue.requests)

    def _has_work(self) -> bool:
        with self._scheduler.lock:  # or what a thread has just taken is neither here nor there
            return bool(self._unsettled or self._queue.waiting or self._reserved)

    def _push(self, request: Request, client: str, priority: int) -> None:
        with self._scheduler.lock:
            empty, was_ready = not self._queue.waiting, self.is_ready()
            if empty:
                self._since = request.arrived
            self._queue.push(request, client, priority)
            ready = self.is_ready()
            if empty or (ready and not was_ready) or self._queue.requests == self._window.expected:
                self._scheduler.wake(ready)

    def _require_open(self) -> None:
        if self._closing:
            raise ShuttingDown()

    def _release(self, reservation: Reservation, count: int) -> None:
        if count > reservation.count:
            raise ValueError(f"{count} items don't fit a reservation of {reservation.count}")
        reservation.count -= count
        self._reserved[reservation.client] -= count
        if not self._reserved[reservation.client]:
            del self._reserved[reservation.client]
        self._quiet.set()

    def _drop(self, request: Request) -> None:
        with self._scheduler.lock:
            self._queue.drop(request)
        self._observer.waiting(self._queue.waiting)
        self._quiet.set()

    def _compute(self, pieces: list[Piece]) -> None:
        started = monotonic()
        outputs: tuple[Array, ...] | None = None
        try:
            outputs = self._run_batch(pieces)
        except BaseException:  # a backend may raise anything; the thread and the other requests live on
            logger.exception("a batch of %d requests failed", len(pieces))
            with self._scheduler.lock:
                for piece in pieces:
                    self._queue.drop(piece.request)
        self._call(self._deliver, pieces, outputs, started, monotonic())

    def _run_batch(self, pieces: list[Piece]) -> tuple[Array, ...]:
        """The only place where the items of requests are copied."""
        parts: list[Part] = []
        count = 0
        for request, start, stop in pieces:
            parts.append(Part(request.tag, count, count + stop - start))
            count += stop - start
        if len(pieces) == 1:
            request, start, stop = pieces[0]
            outputs = self._run(request.items[start:stop], parts)
        else:
            buffer = self._buffers.pop()
            try:
                for (request, first, last), (_, start, stop) in zip(pieces, parts, strict=True):
                    buffer[start:stop] = request.items[first:last]
                outputs = self._run(buffer[:count], parts)
            finally:
                self._buffers.append(buffer)
        if any(len(output) != count for output in outputs):
            raise RuntimeError(f"{count} items gave {[len(output) for output in outputs]} results")
        return outputs

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.debug("results came after the event loop had closed")

    def _deliver(self, pieces: list[Piece], outputs: tuple[Array, ...] | None, started: float, ended: float) -> None:
        answered = sum(request.size == stop and not request.future.done() for request, _, stop in pieces)
        with self._scheduler.lock:
            self._halves.computed(_count(pieces), self._queue.waiting)
            self._window.computed(answered, self._queue.requests, ended - started, monotonic())
        count = 0
        for piece in pieces:
            end = count + piece.stop - piece.start
            self._hand_out(piece, outputs and tuple(output[count:end] for output in outputs))
            count = end
        self._loop.call_soon(self._settle)  # after those who were waiting for these results
        took = (ended - max(self._ended, min(piece.request.arrived for piece in pieces))) / count
        self._item_s = 0.8 * self._item_s + 0.2 * took if self._item_s else took
        self._ended = ended
        if outputs is None:
            self._observer.failed()
        else:
            self._observer.batch(count, [started - piece.request.arrived for piece in pieces], ended - started)
        self._observer.waiting(self._queue.waiting)

    def _hand_out(self, piece: Piece, outputs: tuple[Array, ...] | None) -> None:
        request, start, stop = piece
        try:
            if outputs is not None:
                request.receive(start, stop, outputs)
                return
        except Exception:  # whatever is wrong with one request, the others get their results
            logger.exception("results of %d items can't be put together", request.size)
        request.fail(ComputeFailed("the model failed on this request; the server's log has the reason"))

    def _expire(self, expired: list[Request]) -> None:
        for request in expired:
            request.fail(DeadlinePassed("the deadline passed in the queue; allow more time"))
        self._loop.call_soon(self._settle)
        self._observer.waiting(self._queue.waiting)

    def _settle(self) -> None:
        with self._scheduler.lock:
            self._unsettled -= 1
            if self._queue.waiting:
                self._scheduler.wake(self.is_ready())
        self._quiet.set()


def _recheck(batcher: "weakref.ref[Batcher]", client: str, before: int) -> None:
    if (found := batcher()) is not None:  # one of a model that was replaced isn't kept alive by this
        found.require_room(min(before + 1, found._max_queue), client)


def _count(pieces: Sequence[Piece]) -> int:
    return sum(stop - start for _, start, stop in pieces)
