"""Admission control: how many calls are inside, how much of the server each client has, and room for messages."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from engine.errors import EngineError, NotReady, Overloaded, ShuttingDown

logger = logging.getLogger(__name__)

# One in so many of everything is kept for clients that have less than that themselves.
_KEPT_PART = 8
# One in so many bytes is for the windows of calls that wait for room, the rest for messages and answers. That is to
# be enough for so many calls, with windows between what HTTP/2 begins with and what hides a round trip.
_WINDOWS_PART = 4
_WINDOWS = 2048
_SMALLEST_WINDOW, _LARGEST_WINDOW = 65_535, 262_144
# Calls wait no longer than about this for the event loop before others are refused: behind a longer line even a refusal
# would take long.
_MAX_WAIT_FOR_LOOP_S = 0.25
# A line of so few calls is not long, however slow it is: the process was held up, and not by them.
_SHORT_LINE = 64


@dataclass(frozen=True)
class Limits:
    """What all calls together are held to."""

    calls: int  # that are answered at once
    streams: int  # of these
    bytes: int  # of requests and answers that are held at once
    message_bytes: int  # that may come when core is asked for a message
    window_bytes: int  # that may come of a message before core is asked for it: HTTP/2's first window


def window_of(max_bytes: int) -> int:
    """The window of calls that may have `max_bytes` together: the larger, the fewer messages wait for a round trip."""
    return min(max(max_bytes // _WINDOWS_PART // _WINDOWS, _SMALLEST_WINDOW), _LARGEST_WINDOW)


@dataclass(slots=True)
class Usage:
    """What a client has of the server, or all clients together."""

    calls: int = 0  # that are inside, streams among them
    streams: int = 0
    bytes: int = 0  # of requests, answers, sources of streams, and room that is reserved for messages
    reserved: int = 0  # calls that have room reserved for a message
    windows: int = 0  # bytes that may have come of messages without such room
    waiting: int = 0  # calls whose message has come, and which the event loop has not started
    # By method, what raises while the queue that once refused its call has no room for another one behind so many that
    # wait for the event loop.
    overloaded: dict[str, Callable[[int], None]] = field(default_factory=dict)


class CallPermit:
    """What one call has, from its arrival until its answer has left; see `Admission`. Methods are for any thread."""

    def __init__(self, admission: "Admission", client: str, usage: Usage, *, stream: bool) -> None:
        self._admission = admission
        self.client = client
        self.usage = usage
        self.stream = stream
        self.request_id = ""
        self.authorization: str | bytes | None = None  # what the client sent as such
        self.refusal: EngineError | None = None  # of its message, which has come
        # Changed under the admission's lock only.
        self._counts = (admission.total, usage)
        self._held = 0  # bytes
        self._unanswered = 0  # bytes of messages
        self._reserved = 0  # bytes for a message that is to come
        self._window = 0  # bytes
        self._released = False

    def receive_when_room(self, receive: Callable[[], None]) -> None:
        """Calls `receive`, which asks core for the next message, as soon as there is room for one."""
        with self._admission._lock:
            if self._released:
                return
            if not self._reserve_message():
                self._admission._queues.setdefault(self.client, {})[self] = receive
                return
        receive()

    def received(self, size: int) -> None:
        """The message has come, of `size` bytes; or none will."""
        admission = self._admission
        with admission._lock:
            if self._released:
                return
            if not self.stream:
                admission._line[self] = admission._clock()
                for one in self._counts:
                    one.waiting += 1
                if not admission._bytes_fit(self.usage, size, instead_of=self._reserved):
                    self.refusal = admission._too_many_bytes(size)
            self._have(self._held + size)
            self._unanswered += size
        admission._freed()

    def started(self) -> None:
        """The event loop begins to answer the call."""
        with self._admission._lock:
            self._leave_line()

    def answered(self, size: int, answer: int = 0) -> None:
        """Messages of `size` bytes give way to an answer of `answer` bytes."""
        admission = self._admission
        with admission._lock:
            if self._released:  # a handler that was cancelled may clean up later
                return
            self._unanswered -= size
            held = self._held + answer - size
            if self.stream and self._unanswered <= admission.limits.window_bytes:
                self._have(held)  # its next message may never come
            else:
                self._have(held, self._reserved, self._window)
        if answer < size:
            admission._freed()

    def hold(self, size: int) -> None:
        """Holds `size` bytes more, or fewer where that is negative."""
        self.answered(0, size)

    async def wait_for_room(self, unless: Callable[[], bool]) -> None:
        """Returns when more of its client may be held, or `unless` that is so. On the event loop."""
        await self._admission._wait_until(lambda: unless() or self._admission._bytes_fit(self.usage, 1))

    def abandon(self) -> bool:
        """Releases the permit if the call still waits for room for its message; whether it did."""
        with self._admission._lock:
            waited = self._leave_queue()
        if waited:
            self.release()
        return waited

    def release(self) -> None:
        """The call is over; it may be told so twice."""
        with self._admission._lock:
            if self._released:
                return
            self._released = True
            self._leave_queue()
            self._leave_line()
            self._have(0)
            self._count(-1)
            if not self.usage.calls:
                self._admission._clients.pop(self.client, None)
        self._admission._freed()

    # With the lock held.

    def _count(self, calls: int) -> None:
        for one in self._counts:
            one.calls += calls
            one.streams += calls * self.stream

    def _have(self, held: int, reserved: int = 0, window: int = 0) -> None:
        """Has so many bytes, for a message to come, and of its window, in place of what it had of each."""
        size = held + reserved - self._held - self._reserved
        messages = (reserved > 0) - (self._reserved > 0)
        windows = window - self._window
        for one in self._counts:
            one.bytes += size
            one.reserved += messages
            one.windows += windows
        self._held, self._reserved, self._window = held, reserved, window

    def _reserve_message(self) -> bool:
        """Reserves room for a message, if there is any."""
        limits = self._admission.limits
        if self.stream and self._unanswered <= limits.window_bytes:
            return True
        if not self._admission._message_fits(self.usage):
            return False
        self._have(self._held, limits.message_bytes)
        return True

    def _leave_line(self) -> None:
        """Waits for the event loop no longer, if it did."""
        if self._admission._line.pop(self, None) is not None:
            for one in self._counts:
                one.waiting -= 1

    def _leave_queue(self) -> bool:
        """Waits for room no longer; whether it did."""
        queues = self._admission._queues
        queue = queues.get(self.client, {})
        waited = queue.pop(self, None) is not None
        if waited and not queue:
            del queues[self.client]
        return waited


class Admission:
    """Admits calls, and counts them out. Construct it inside a running event loop; calls are refused until `open`.

    A call is inside until its answer has left, however slowly the client reads. No client can shut out the others: the
    last eighth of calls, streams and bytes is for those that have less than an eighth.

    Core can't be told how much of a message to receive: once it is asked for one, as much may come as a message may
    have. So room for the largest is reserved before core is asked, and exchanged for the real size when it is there.
    Where there is no room the message waits, and stays with its client but for the first window. A stream waits for a
    message most of the time. It may ask without room, and its window doesn't count, unless messages are unanswered: the
    limit of streams bounds that.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self.total = Usage()
        self._max_windows = limits.bytes // _WINDOWS_PART
        self._max_bytes = limits.bytes - self._max_windows
        # Reservations leave more: an eighth that is smaller than a message would be of no use.
        self._kept_for_messages = max(
            self._max_bytes // _KEPT_PART, min(2 * limits.message_bytes, self._max_bytes // 2)
        )
        self._lock = threading.Lock()
        self._clients: dict[str, Usage] = {}
        # Calls that wait for room, and what asks core for their messages, by client; the next client first.
        self._queues: dict[str, dict[CallPermit, Callable[[], None]]] = {}
        self._line: dict[CallPermit, float] = {}  # calls that wait for the event loop, since when; the oldest first
        self._given_back = asyncio.Event()  # whoever waits for it clears it
        self._given_back.set()
        self._ready = False
        self._closing = False
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Admits calls from now on; before, they are refused with UNAVAILABLE."""
        self._ready = True

    def close(self) -> None:
        """Admits no more calls."""
        self._closing = True

    async def wait_until_idle(self, timeout: float) -> None:
        """Returns when no call is inside, or after `timeout` seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wait_until(lambda: not self.total.calls), timeout)
        if self.total.calls:
            logger.warning("%d calls are cut off: the grace is over", self.total.calls)

    def admit(self, client: str, method: str = "", *, stream: bool = False) -> CallPermit:
        """Admits a call. On any thread.

        A client that was refused because a queue is full is refused here from then on: before its message is asked for
        and parsed, and beside the event loop.

        Raises:
            EngineError: When the server can't take it now.
        """
        if self._closing:
            raise ShuttingDown()
        if not self._ready:
            raise NotReady("the server is warming up; send the request again when its health says SERVING")
        if (known := self._clients.get(client)) and (recheck := known.overloaded.get(method)):
            recheck(known.waiting)
        with self._lock:
            usage = self._clients.get(client) or Usage()
            self._require_room(usage, stream=stream)
            self._clients[client] = usage
            permit = CallPermit(self, client, usage, stream=stream)
            permit._count(1)
            permit._have(0, window=0 if stream else self.limits.window_bytes)
        return permit

    # With the lock held.

    def _require_room(self, usage: Usage, *, stream: bool) -> None:
        total, limits = self.total, self.limits
        now = self._clock()
        late = now - next(iter(self._line.values()), now) > _MAX_WAIT_FOR_LOOP_S
        if late and total.waiting > _SHORT_LINE and (usage.waiting + 1) * _KEPT_PART > total.waiting:
            raise _overloaded("more calls come than the server can look at", 0.5)
        if not _fits(total.calls, usage.calls, 1, limits.calls):
            raise _overloaded(f"the server is answering {total.calls} calls, {_at_most(limits.calls)}")
        if stream and not _fits(total.streams, usage.streams, 1, limits.streams):
            raise _overloaded(f"the server has {total.streams} streams open, {_at_most(limits.streams)}")
        size = limits.message_bytes  # what is reserved for messages is free again soon
        held, own = total.bytes - total.reserved * size, usage.bytes - usage.reserved * size
        if not _fits(held, own, 1, self._max_bytes):
            raise self._too_many_bytes(1)
        if not stream and not _fits(total.windows, usage.windows, limits.window_bytes, self._max_windows):
            raise _overloaded(f"{total.calls} calls wait for room for their messages")

    def _bytes_fit(self, usage: Usage, size: int, kept: int | None = None, *, instead_of: int = 0) -> bool:
        return _fits(self.total.bytes - instead_of, usage.bytes - instead_of, size, self._max_bytes, kept)

    def _message_fits(self, usage: Usage) -> bool:
        size, total = self.limits.message_bytes, self.total
        # One message is on its way in any case, or nobody would go on while much is held for clients that don't read.
        first = not total.reserved or (not usage.reserved and total.bytes + size <= self._max_bytes)
        return first or self._bytes_fit(usage, size, self._kept_for_messages)

    def _too_many_bytes(self, size: int) -> Overloaded:
        most = _at_most(self._max_bytes)
        return _overloaded(f"the server holds {self.total.bytes} bytes of requests, {most}, and {size} more don't fit")

    # Without the lock.

    def _freed(self) -> None:
        """Lets calls go on that wait for room."""
        while self._queues and (found := self._next()):
            for receive in found:
                receive()
        if not self._given_back.is_set():
            with suppress(RuntimeError):  # the event loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._given_back.set)

    def _next(self) -> list[Callable[[], None]]:
        """Reserves room for calls that wait for it, clients in turn; who asks core for their messages."""
        found: list[Callable[[], None]] = []
        with self._lock:
            for client, queue in list(self._queues.items()):
                permit, receive = next(iter(queue.items()))
                if permit._reserve_message():
                    found.append(receive)
                    permit._leave_queue()
                    if queue:
                        self._queues[client] = self._queues.pop(client)
        return found

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        """Looks again whenever something is given back."""
        while not holds():
            self._given_back.clear()
            if not holds():  # looked at once more: what other threads give back from here on, they tell
                await self._given_back.wait()


def _fits(total: int, own: int, more: int, most: int, kept: int | None = None) -> bool:
    """Whether a client that has `own` of the `total` may have `more`, where there are `most`, and `kept` for others."""
    kept = most // _KEPT_PART if kept is None else kept
    return total + more <= most - kept or (total + more <= most and own + more <= kept) or not total


def _at_most(number: int) -> str:
    return f"at most {number}, the last eighth for clients that have less"


def _overloaded(reason: str, retry_after_s: float = 0.1) -> Overloaded:
    return Overloaded(f"{reason}; send again after a pause, or to another one", retry_after_s)
