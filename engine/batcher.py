"""Dynamic batching: requests of all clients share batches, and nobody waits while the device is idle.

A `Batcher` serves one graph. Several of them share one `Device`, whose thread computes one batch at a time; a
batch is put together at the moment the device becomes free for it, so it holds all that arrived meanwhile.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from engine.errors import ComputeFailed, DeadlinePassed, Overloaded, ShuttingDown

Array = npt.NDArray[Any]
T = TypeVar("T")

logger = logging.getLogger(__name__)


class Device:
    """The compute device: one thread, and a lock that hands it to the batchers in the order of asking."""

    def __init__(self) -> None:
        self.free = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs `function` on the compute thread; call with `free` held."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Ends the thread, after what it is running."""
        self._thread.shutdown()


@dataclass(eq=False)
class _Request:
    """One client's items on their way through one or more batches."""

    items: Array
    deadline: float | None
    arrived: float
    future: "asyncio.Future[tuple[Array, ...]]"
    taken: int = 0
    finished: int = 0
    results: tuple[Array, ...] = ()

    @property
    def remaining(self) -> int:
        return len(self.items) - self.taken

    def receive(self, start: int, stop: int, outputs: tuple[Array, ...]) -> None:
        """Takes the results of items start to stop; the last ones complete the request."""
        if stop - start == len(self.items):
            self.results = outputs
        else:
            if not self.results:
                self.results = tuple(np.empty((len(self.items), *output.shape[1:]), output.dtype) for output in outputs)
            for result, output in zip(self.results, outputs, strict=True):
                result[start:stop] = output
        self.finished += stop - start
        if self.finished == len(self.items) and not self.future.done():
            self.future.set_result(self.results)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Piece(NamedTuple):
    """Items start to stop of a request, as a part of a batch."""

    request: _Request
    start: int
    stop: int


class Batcher:
    """Merges requests of any size into batches of at most `max_batch_size`, and splits results back.

    Construct it inside a running event loop; all methods belong to that loop.

    Args:
        run: Computes a batch, [n, *item_shape] to a tuple of arrays [n, ...] that are the caller's, on the
            device's thread. An exception fails the requests in that batch and no others.
        item_shape: Shape of one item.
        dtype: Type of the items.
        device: Where `run` runs, shared with other batchers.
        max_batch_size: Largest batch, items.
        max_delay: How long the first item of a batch may wait for others while the device is free, seconds.
        max_queue: Most items that may wait; a request beyond is refused at once.
    """

    def __init__(
        self,
        run: Callable[[Array], tuple[Array, ...]],
        item_shape: Sequence[int],
        dtype: npt.DTypeLike,
        device: Device,
        *,
        max_batch_size: int,
        max_delay: float = 0.0,
        max_queue: int = 4096,
    ) -> None:
        self._run = run
        self._device = device
        self._max_batch_size = max_batch_size
        self._max_delay = max_delay
        self._max_queue = max_queue
        self._buffer = np.empty((max_batch_size, *item_shape), dtype)
        self._queue: deque[_Request] = deque()
        self._waiting = 0  # items in the queue
        self._closing = False
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._worker = self._loop.create_task(self._work())

    async def submit(self, items: Array, deadline: float | None = None) -> tuple[Array, ...]:
        """Computes a request's items, alone or together with those of others.

        Cancelling the call takes the request out of the queue.

        Args:
            items: [n, *item_shape] of the batcher's dtype, C-contiguous, n >= 1; must not change meanwhile.
            deadline: Time of the event loop's clock after which the result is of no use; None for never.

        Returns:
            The outputs of `run` for these items, in their order.

        Raises:
            Overloaded: When the queue has no room.
            DeadlinePassed: When the deadline passed before compute.
            ShuttingDown: When the batcher was closed.
            ComputeFailed: When `run` raised.
        """
        if items.shape[1:] != self._buffer.shape[1:] or items.dtype != self._buffer.dtype or not len(items):
            raise ValueError(
                f"items must be n >= 1 of {self._buffer.dtype} {self._buffer.shape[1:]}, "
                f"not {items.dtype} {items.shape}"
            )
        if self._closing:
            raise ShuttingDown("the server is shutting down; send the request to another one")
        now = self._loop.time()
        if deadline is not None and deadline <= now:
            raise DeadlinePassed("the deadline passed before the request was queued; allow more time")
        self.require_room(len(items))
        request = _Request(items, deadline, now, self._loop.create_future())
        self._queue.append(request)
        self._waiting += len(items)
        self._wake.set()
        try:
            return await request.future
        finally:
            self._drop(request)

    def require_room(self, count: int) -> None:
        """Raises Overloaded when `count` more items don't fit the queue now."""
        if self._waiting + count > self._max_queue:
            raise Overloaded(
                f"the queue holds {self._waiting} of at most {self._max_queue} images, {count} more "
                "don't fit; send again after a pause, or to another server"
            )

    async def close(self) -> None:
        """Refuses new requests, and returns when all accepted ones are answered."""
        self._closing = True
        self._wake.set()
        await self._worker

    async def _work(self) -> None:
        while await self._next_is_due():
            async with self._device.free:
                if pieces := self._take():
                    await self._compute(pieces)

    async def _next_is_due(self) -> bool:
        """Waits until a batch should start; False when there is none to come."""
        while not self._queue:
            if self._closing:
                return False
            self._wake.clear()
            await self._wake.wait()
        due = self._queue[0].arrived + self._max_delay
        while self._waiting < self._max_batch_size and not self._closing and (left := due - self._loop.time()) > 0:
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), left)
            except asyncio.TimeoutError:
                break
        return True

    def _take(self) -> list[_Piece]:
        """Takes up to a batch of items out of the queue; requests that are of no use any more leave it."""
        now = self._loop.time()
        pieces: list[_Piece] = []
        room = self._max_batch_size
        while room and self._queue:
            request = self._queue[0]
            if request.deadline is not None and request.deadline <= now:
                request.fail(DeadlinePassed("the deadline passed in the queue; allow more time"))
            if request.future.done():
                self._drop(request)
                continue
            self._queue.popleft()
            count = min(room, request.remaining)
            pieces.append(_Piece(request, request.taken, request.taken + count))
            request.taken += count
            self._waiting -= count
            room -= count
            if request.remaining:
                self._requeue(request)
        return pieces

    def _requeue(self, request: _Request) -> None:
        """Queues the rest of a request: behind all others if it is large, else first."""
        if len(request.items) > self._max_batch_size:
            self._queue.append(request)
        else:
            self._queue.appendleft(request)

    def _drop(self, request: _Request) -> None:
        if request.remaining:
            self._queue.remove(request)
            self._waiting -= request.remaining
            request.taken = len(request.items)

    async def _compute(self, pieces: list[_Piece]) -> None:
        try:
            outputs = await self._device.run(self._run_batch, pieces)
        except Exception:
            logger.exception("a batch of %d requests failed", len(pieces))
            for piece in pieces:
                piece.request.fail(ComputeFailed("the model failed on this request; the server's log has the reason"))
                self._drop(piece.request)
            return
        offset = 0
        for request, start, stop in pieces:
            end = offset + stop - start
            request.receive(start, stop, tuple(output[offset:end] for output in outputs))
            offset = end

    def _run_batch(self, pieces: list[_Piece]) -> tuple[Array, ...]:
        """Runs on the device's thread: the only place where the items of requests are copied."""
        if len(pieces) == 1:
            request, start, stop = pieces[0]
            batch = request.items[start:stop]
        else:
            count = 0
            for request, start, stop in pieces:
                self._buffer[count : count + stop - start] = request.items[start:stop]
                count += stop - start
            batch = self._buffer[:count]
        outputs = self._run(batch)
        if any(len(output) != len(batch) for output in outputs):
            raise RuntimeError(f"{len(batch)} items gave {[len(output) for output in outputs]} results")
        return outputs
