"""Threads that clients share in turn."""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Request:
    """Calls of one function, with each of several items; the future gives their results in the items' order."""

    __slots__ = ("function", "future", "items", "left", "results", "taken")

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function = function
        self.items = items
        self.taken = 0  # items that were begun
        self.left = len(items)  # that have not ended
        self.results: list[Any] = [None] * len(items)
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    def end(self, error: BaseException | None = None) -> None:
        """Wakes the one who waits, from any thread."""
        with suppress(RuntimeError):  # the event loop is closed, and nobody waits any more
            self.future.get_loop().call_soon_threadsafe(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        if self.future.done():  # given up meanwhile
            return
        if error is None:
            self.future.set_result(self.results)
        else:
            self.future.set_exception(error)


class RoundRobinPool:
    """Threads that call functions. Clients take turns, a call each, and so do the requests of a client.

    So nobody waits long, however large and many the requests of others are. The event loop is woken once for each
    request, and not for each call.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Request]] = OrderedDict()  # by client; whose turn is next comes first
        self._turns: SimpleQueue[bool] = SimpleQueue()  # one for each call that waits; False: a thread ends
        self._threads = threads
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    async def map(self, function: Callable[[T], R], items: Sequence[T], client: str) -> list[R]:
        """Calls a function with each of one or more items, for a client; gives the results in their order.

        What it raises first is raised here, and it is called with no more of them; nor is it when this is cancelled.
        """
        request = _Request(function, items)
        with self._lock:
            self._waiting.setdefault(client, deque()).append(request)
        for _ in items:
            self._turns.put(True)
        try:
            return await request.future
        finally:
            if request.taken < len(items):
                self._drop(request, client)

    def close(self) -> None:
        """Ends the threads after what they are at; doesn't wait for that."""
        for _ in range(self._threads):
            self._turns.put(False)

    def _work(self) -> None:
        while self._turns.get():
            self._take_turn()

    def _take_turn(self) -> None:
        with self._lock:
            if not self._waiting:  # what was to be called was given up
                return
            client, requests = self._waiting.popitem(last=False)
            request = requests.popleft()
            index, given_up = request.taken, request.future.done()
            request.taken += 1
            if request.taken < len(request.items) and not given_up:
                requests.append(request)
            if requests:
                self._waiting[client] = requests
        if given_up:
            return
        try:
            request.results[index] = request.function(request.items[index])
            with self._lock:
                request.left -= 1
                ended = not request.left
            if ended:
                request.end()
        except BaseException as error:  # the thread outlives whatever it calls
            self._drop(request, client)
            request.end(error)
        finally:
            del request, requests  # an error that is kept knows this frame

    def _drop(self, request: _Request, client: str) -> None:
        with self._lock, suppress(KeyError, ValueError):  # it may have gone already
            self._waiting[client].remove(request)
            if not self._waiting[client]:
                del self._waiting[client]
