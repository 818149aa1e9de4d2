"""The order in which requests are served: fair between clients, weighted by priority.

Every client has a flow of requests, and every flow an account that starts at the place the queue has reached, and
grows by the price of every item that is taken. The flow whose next piece has the lowest place,

    account + items of the piece * price,

is served first, ties in the order of arrival; a piece is what is left of a request, at most a batch. The queue has
reached the highest account that was served; with every batch it also reaches one item further by itself, though
not beyond the lowest place in it. What a client does not use is not saved up for it; what it used beyond its share
is still owed after a pause. (Start-time fair queueing, Goyal et al. 1996, but in the order of finish, and ageing.)
With batches of at most B items:

- Clients that want more than there is get the same number of items each, however large or many their requests.
- One image goes into the next batch as long as fewer than B other clients keep the queue full; among more of them
  it waits for one turn of each at most.
- `priority` sets the price of an item: a client of priority 1 gets 8 times the items of one of priority 0, and that
  one 8 times those of priority -1, while all have more waiting. Each has a share, so nobody starves.
- However many clients come anew with single images, after B batches they queue behind a request of B items, and
  after 8 B behind one of priority -1.
- Within a flow, requests are served first come, first served, but one of more than a batch goes behind the others
  of its client after each batch. A request of at most a batch that was cut is finished next.
- When the first request of a flow is cancelled or expires, the next one of it takes a place as if it came then.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import numpy as np

from engine.arrays import Array

PRICES = {1: 1 / 8, 0: 1.0, -1: 8.0}
"""Price of an item by priority: 1 interactive, 0 normal, -1 background."""


@dataclass(eq=False)
class _Flow:
    """The waiting requests of one client and priority."""

    price: float
    requests: "OrderedDict[Request, None]" = field(default_factory=OrderedDict)  # an ordered set
    waiting: int = 0  # items
    account: float = 0.0
    order: int = 0  # of its entry in the heap, other entries are stale; 0: it has none, since nothing waits


class Request:
    """One client's items, [n, ...], on their way through one or more batches, until the results go into its future.

    After the deadline, on the clock of `arrived`, the result is of no use. What to compute knows the tag.
    """

    __slots__ = ("arrived", "deadline", "finished", "flow", "future", "items", "results", "size", "tag", "taken")

    def __init__(
        self,
        items: Array,
        deadline: float | None,
        arrived: float,
        future: "asyncio.Future[tuple[Array, ...]]",
        tag: Any = None,
    ) -> None:
        self.items = items
        self.size = len(items)
        self.deadline = deadline
        self.arrived = arrived
        self.future = future
        self.tag = tag
        self.taken = 0
        self.finished = 0
        self.results: tuple[Array, ...] = ()
        self.flow: _Flow | None = None

    def receive(self, start: int, stop: int, outputs: tuple[Array, ...]) -> None:
        """Takes the results of items start to stop; the last ones complete the request."""
        if self.future.done():
            return
        if stop - start == self.size:
            self.results = outputs
        else:
            if not self.results:
                self.results = tuple(np.empty((self.size, *output.shape[1:]), output.dtype) for output in outputs)
            for result, output in zip(self.results, outputs, strict=True):
                result[start:stop] = output
        self.finished += stop - start
        if self.finished == self.size:
            self.future.set_result(self.results)

    def fail(self, error: Exception) -> None:
        """Fails the request, unless it is over."""
        if not self.future.done():
            self.future.set_exception(error)


class Piece(NamedTuple):
    """Items start to stop of a request, as a part of a batch."""

    request: Request
    start: int
    stop: int


class FairQueue:
    """Requests in the order described above. Knows no locks: its user guards it."""

    def __init__(self, max_batch_size: int) -> None:
        self.waiting = 0  # items
        self.requests = 0  # that they belong to
        self._max_batch_size = max_batch_size
        self._flows: dict[tuple[str, int], _Flow] = {}
        self._heap: list[tuple[float, int, _Flow]] = []  # place, order of arrival, flow
        self._virtual_time = 0.0
        self._arrivals = 0
        self._compact_at = 64  # flows and entries

    def push(self, request: Request, client: str = "", priority: int = 0) -> None:
        """Queues a request; `priority` is a key of `PRICES`."""
        key = (client, priority)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(PRICES[priority])
        request.flow = flow
        flow.requests[request] = None
        flow.waiting += request.size
        self.waiting += request.size
        self.requests += 1
        if not flow.order:
            self._activate(flow)

    def waiting_of(self, client: str) -> int:
        """Items of one client in the queue."""
        flows = (self._flows.get((client, priority)) for priority in PRICES)
        return sum(flow.waiting for flow in flows if flow)

    def take(self, room: int, now: float) -> tuple[list[Piece], list[Request]]:
        """Takes up to `room` items, and requests out of the queue that it found to be past their deadline."""
        pieces: list[Piece] = []
        expired: list[Request] = []
        if self._first(now, expired):
            self._virtual_time = max(self._virtual_time, min(self._virtual_time + 1, self._heap[0][0]))
        while room and (request := self._first(now, expired)):
            _, order, flow = heappop(self._heap)
            start = request.taken
            count = min(room, request.size - start)
            pieces.append(Piece(request, start, start + count))
            request.taken = start + count
            room -= count
            flow.waiting -= count
            self.waiting -= count
            if not start or request.size > self._max_batch_size:  # the rest of a cut request has its place already
                self._virtual_time = max(self._virtual_time, flow.account)
            flow.account += count * flow.price
            if request.taken == request.size:
                del flow.requests[request]
                self.requests -= 1
            elif request.size > self._max_batch_size:
                flow.requests.move_to_end(request)
            cut = request.taken < request.size <= self._max_batch_size
            self._enqueue(flow, order if cut else None)
        self._compact()
        return pieces, expired

    def drop(self, request: Request) -> None:
        """Takes what is left of a request out of the queue."""
        self._remove(request)
        self._compact()

    def _remove(self, request: Request) -> None:
        flow = request.flow
        if flow is None or request.taken == request.size:
            return
        first = next(iter(flow.requests)) is request
        left = request.size - request.taken
        del flow.requests[request]
        flow.waiting -= left
        self.waiting -= left
        self.requests -= 1
        request.taken = request.size
        if first:
            self._activate(flow)

    def _first(self, now: float, expired: list[Request]) -> Request | None:
        """The request with the lowest place, which is that of the first entry; what expired before it goes."""
        while self._heap:
            _, order, flow = self._heap[0]
            if order != flow.order:
                heappop(self._heap)
                continue
            request = next(iter(flow.requests))
            if request.deadline is None or request.deadline > now:
                return request
            expired.append(request)
            self._remove(request)
        return None

    def _activate(self, flow: _Flow) -> None:
        flow.account = max(flow.account, self._virtual_time)
        self._enqueue(flow)

    def _enqueue(self, flow: _Flow, order: int | None = None) -> None:
        """Gives a flow the place of its first request, if there is one; its last entry becomes stale."""
        if not flow.requests:
            flow.order = 0
            return
        self._arrivals += 1
        flow.order = order or self._arrivals
        request = next(iter(flow.requests))
        items = min(request.size - request.taken, self._max_batch_size)
        heappush(self._heap, (flow.account + items * flow.price, flow.order, flow))

    def _compact(self) -> None:
        """Forgets clients that have nothing waiting and owe nothing, and stale entries."""
        if not self.waiting:
            self._flows.clear()
            self._heap.clear()
            self._virtual_time = 0.0
        elif len(self._flows) + len(self._heap) > self._compact_at:
            self._flows = {
                key: flow for key, flow in self._flows.items() if flow.order or flow.account > self._virtual_time
            }
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].order]
            heapify(self._heap)
            self._compact_at = 2 * (len(self._flows) + len(self._heap)) + 64
