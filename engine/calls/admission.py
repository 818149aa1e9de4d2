"""Who is let in: what calls are held to, how many are inside, and the room that they take."""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from engine.calls.access import RateLimit, Tokens
from engine.calls.share import Share, fits
from engine.errors import EngineError, NotReady, Overloaded, ShuttingDown

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 0.1
WINDOW_BYTES = 65_535
"""What core takes of a message before it is asked for one: HTTP/2's first window."""
# This part of the bytes is for the windows of calls that wait for their message, the rest for what is there.
_FOR_WINDOWS = 4
# Calls that may wait for the event loop. Behind more of them even a refusal would take long.
_MAX_UNBEGUN = 512


@dataclass(frozen=True)
class Guards:
    """What calls are held to.

    Attributes:
        tokens: Who may call; None: everyone.
        certificates: Whether clients show certificates, by whose name they then go.
        rate: Images a second of each client; None: any number.
        max_calls: Calls that are answered at once.
        max_streams: Of these, streams.
        max_bytes: Bytes of requests and answers that are held at once; streams are not read while there are so many.
        max_message_bytes: Largest message, bytes: so much may come when core is asked for one.
    """

    tokens: Tokens | None = None
    certificates: bool = False
    rate: RateLimit | None = None
    max_calls: int = 16384
    max_streams: int = 256
    max_bytes: int = 512 * 2**20
    max_message_bytes: int = 16 * 2**20


class Ticket:
    """What one call holds, from its arrival until its answer has left; see `Admission`. Methods are for any thread.

    Attributes:
        client: The name that its client goes by.
        request_id: Name of the call in logs and traces.
        authorization: What the client sent as such.
        version: Of the tokens that knew it.
        refusal: Why its message is refused, which has come.
    """

    def __init__(self, admission: "Admission", client: str, share: Share, *, stream: bool) -> None:
        self._admission = admission
        self.share = share
        self.stream = stream
        self.held = 0
        self.unanswered = 0  # bytes of messages
        self.expected = 0  # bytes that are held for a message that is to come, beside its window
        self.window = 0  # bytes
        self.waiting: Callable[[], None] | None = None
        self.unbegun = False
        self.left = False
        self.client = client
        self.request_id = ""
        self.authorization: str | bytes | None = None
        self.version = 0
        self.refusal: EngineError | None = None

    def ask(self, receive: Callable[[], None]) -> None:
        """Calls `receive`, which asks core for the next message, as soon as there is room for one."""
        self._admission.ask(self, receive)

    def came(self, size: int) -> None:
        """The message has come, of `size` bytes; or none will."""
        self._admission.came(self, size)

    def begin(self) -> None:
        """The event loop begins to answer the call."""
        self._admission.begin(self)

    def answered(self, size: int, answer: int = 0) -> None:
        """Messages of `size` bytes give way to an answer of `answer` bytes."""
        self._admission.hold(self, answer - size, answered=size)

    def hold(self, size: int) -> None:
        """Holds `size` bytes more, or fewer where that is negative."""
        self._admission.hold(self, size)

    def has_room(self) -> bool:
        """Whether more of its client should be held."""
        return self._admission.has_room(self)

    async def freed(self) -> None:
        """Returns when there may be room again. On the event loop."""
        await self._admission.freed(self)

    def give_up(self) -> bool:
        """Ends the call if it still waits for room for its message; whether it did."""
        return self._admission.leave(self, only_waiting=True)

    def leave(self) -> None:
        """The call is over."""
        self._admission.leave(self)


class Admission:
    """Counts calls in and out. Construct it inside a running event loop; calls are refused until `open`.

    A call is inside until its answer has left, however slowly the client reads. No client can shut out the others: the
    last eighth of calls, streams and bytes is for those that hold less than an eighth.

    Core can't be told how much of a message to take: once it is asked for one, as much may come as a message may have.
    So a call holds room for the largest before core is asked, and for the real one as soon as that is there. Where
    there is no room the message waits, and stays with its client but for the first window. Streams wait for a message
    most of the time. They may ask for it without room, unless messages are unanswered: `max_streams` bounds them.

    Args:
        guards: What calls are held to.

    Attributes:
        guards: What calls are held to.
        calls: That are inside, streams among them.
        streams: That are inside.
        held: Bytes of their requests and answers, of room for messages to come, and of sources that streams remember.
        windows: Bytes that may have come of messages, for which there is no room yet or which streams wait for.
    """

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.calls = self.streams = self.held = self.windows = 0
        self._for_windows = guards.max_bytes // _FOR_WINDOWS
        self._most = guards.max_bytes - self._for_windows
        self._unbegun = 0
        self._expecting = 0  # calls that hold room for a message to come
        self._lock = threading.Lock()
        self._shares: dict[str, Share] = {}
        self._lines: dict[str, dict[Ticket, None]] = {}  # who waits for room, by client; whose turn is next comes first
        self._readers: list[asyncio.Future[None]] = []  # streams that wait for room
        self._ready = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._left = asyncio.Event()

    def open(self) -> None:
        """Lets calls in from now on; before, they are refused with UNAVAILABLE."""
        self._ready = True

    def close(self) -> None:
        """Lets no more calls in."""
        self._closing = True

    async def wait_until_idle(self, timeout: float) -> None:
        """Returns when no call is inside, or after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._all_left(), timeout)
        except asyncio.TimeoutError:
            logger.warning("%d calls are cut off: the grace is over", self.calls)

    def enter(self, client: str, method: str = "", *, stream: bool = False) -> Ticket:
        """Lets a call of a method in. On any thread.

        Who was refused because a queue is full is refused here while it is: before his message is asked for and
        parsed, and beside the event loop.

        Raises:
            EngineError: When the server can't take it now.
        """
        if self._closing:
            raise ShuttingDown("the server is shutting down; send the request to another one")
        if not self._ready:
            raise NotReady("the server is warming up; send the request again when its health says SERVING")
        guards = self.guards
        if (share := self._shares.get(client)) and (recheck := share.overloaded.get(method)):
            recheck()
            share.overloaded.pop(method, None)
        with self._lock:
            share = self._shares.get(client) or Share()
            if not fits(self._unbegun, share.unbegun, 1, _MAX_UNBEGUN):
                raise _no_room("more calls come than the server can look at", 0.5)
            if not fits(self.calls, share.calls, 1, guards.max_calls):
                raise _no_room(f"the server is answering {self.calls} calls, {_most(guards.max_calls)}")
            if stream and not fits(self.streams, share.streams, 1, guards.max_streams):
                raise _no_room(f"the server has {self.streams} streams open, {_most(guards.max_streams)}")
            size = guards.max_message_bytes  # what is held for messages to come is free again soon
            if not fits(self.held - self._expecting * size, share.held - share.expecting * size, 1, self._most):
                raise self._too_much(1)
            if not fits(self.windows, share.windows, WINDOW_BYTES, self._for_windows):
                raise _no_room(f"{self.calls} calls wait for room for their messages")
            self._shares[client] = share
            ticket = Ticket(self, client, share, stream=stream)
            self.calls += 1
            share.calls += 1
            self.streams += stream
            share.streams += stream
            self._expect(ticket, 0, window=WINDOW_BYTES)
        return ticket

    # For tickets.

    def ask(self, ticket: Ticket, receive: Callable[[], None]) -> None:
        """As `Ticket.ask` says."""
        with self._lock:
            if ticket.left:
                return
            if not self._grant(ticket):
                ticket.waiting = receive
                self._lines.setdefault(ticket.client, {})[ticket] = None
                return
        receive()

    def came(self, ticket: Ticket, size: int) -> None:
        """As `Ticket.came` says."""
        with self._lock:
            if ticket.left:
                return
            self._expect(ticket, 0)
            self._hold(ticket, size)
            ticket.unanswered += size
            if not ticket.stream:
                ticket.unbegun = True
                self._unbegun += 1
                ticket.share.unbegun += 1
                if not fits(self.held - size, ticket.share.held - size, size, self._most):
                    ticket.refusal = self._too_much(size)
        self._freed()

    def begin(self, ticket: Ticket) -> None:
        """As `Ticket.begin` says."""
        with self._lock:
            self._begin(ticket)

    def hold(self, ticket: Ticket, size: int, answered: int = 0) -> None:
        """As `Ticket.hold` and `Ticket.answered` say."""
        with self._lock:
            if ticket.left:  # what was cancelled tidies up later
                return
            ticket.unanswered -= answered
            self._hold(ticket, size)
            if ticket.stream and ticket.expected and ticket.unanswered <= WINDOW_BYTES:
                self._expect(ticket, 0, window=WINDOW_BYTES)  # it may never come
        if size < 0:
            self._freed()

    def has_room(self, ticket: Ticket) -> bool:
        """As `Ticket.has_room` says."""
        return fits(self.held, ticket.share.held, 1, self._most)

    async def freed(self, ticket: Ticket) -> None:
        """As `Ticket.freed` says."""
        reader: asyncio.Future[None] = self._loop.create_future()
        self._readers.append(reader)
        if not self.has_room(ticket):  # looked at last: what other threads free from here on, they tell
            await reader

    def leave(self, ticket: Ticket, *, only_waiting: bool = False) -> bool:
        """Counts a call out; whether it was inside."""
        with self._lock:
            if ticket.left or (only_waiting and ticket.waiting is None):
                return False
            ticket.left = True
            if ticket.waiting is not None:
                self._out_of_line(ticket)
            self._begin(ticket)
            self._expect(ticket, 0)
            self._hold(ticket, -ticket.held)
            share = ticket.share
            self.calls -= 1
            share.calls -= 1
            self.streams -= ticket.stream
            share.streams -= ticket.stream
            if not share.calls:
                self._shares.pop(ticket.client, None)
            awaited = self._closing and not self.calls
        self._freed()
        if awaited:
            with suppress(RuntimeError):  # the event loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._left.set)
        return True

    # With the lock held.

    def _grant(self, ticket: Ticket) -> bool:
        """Holds room for a message, if there is any."""
        if ticket.stream and ticket.unanswered <= WINDOW_BYTES:
            self._expect(ticket, 0, window=WINDOW_BYTES)
            return True
        share, size = ticket.share, self.guards.max_message_bytes
        # One message is on its way in any case, or nobody would go on while much is held for clients that don't read.
        first = not self._expecting or (not share.expecting and self.held + size <= self._most)
        if not first and not fits(self.held, share.held, size, self._most):
            return False
        self._expect(ticket, size)
        return True

    def _expect(self, ticket: Ticket, size: int, window: int = 0) -> None:
        """Holds `size` bytes for a message to come, or its window, in place of what is held for it."""
        share, change = ticket.share, (size > 0) - (ticket.expected > 0)
        self._expecting += change
        share.expecting += change
        self._hold(ticket, size - ticket.expected)
        ticket.expected = size
        self.windows += window - ticket.window
        share.windows += window - ticket.window
        ticket.window = window

    def _hold(self, ticket: Ticket, size: int) -> None:
        self.held += size
        ticket.share.held += size
        ticket.held += size

    def _begin(self, ticket: Ticket) -> None:
        if ticket.unbegun:
            ticket.unbegun = False
            self._unbegun -= 1
            ticket.share.unbegun -= 1

    def _out_of_line(self, ticket: Ticket) -> None:
        line = self._lines[ticket.client]
        del line[ticket]
        ticket.waiting = None
        if not line:
            del self._lines[ticket.client]

    def _next(self) -> list[Callable[[], None]]:
        """Gives room to who waits for it, clients in turn."""
        found: list[Callable[[], None]] = []
        for client in list(self._lines):
            ticket = next(iter(self._lines[client]))
            if self._grant(ticket):
                assert ticket.waiting is not None
                found.append(ticket.waiting)
                self._out_of_line(ticket)
                if client in self._lines:
                    self._lines[client] = self._lines.pop(client)
        return found

    def _too_much(self, size: int) -> Overloaded:
        most = _most(self._most)
        return _no_room(f"the server holds {self.held} bytes of requests, {most}, and {size} more don't fit")

    def _freed(self) -> None:
        """Without the lock: who waits for room goes on."""
        while self._lines:
            with self._lock:
                granted = self._next()
            for receive in granted:
                receive()
            if not granted:
                break
        if self._readers:
            with suppress(RuntimeError):  # the event loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            if not reader.done():
                reader.set_result(None)

    async def _all_left(self) -> None:
        while self.calls:
            self._left.clear()
            if self.calls:
                await self._left.wait()


def _most(number: int) -> str:
    return f"at most {number}, the last eighth for clients that have less"


def _no_room(reason: str, retry_after_s: float = _RETRY_AFTER_S) -> Overloaded:
    return Overloaded(f"{reason}; send again after a pause, or to another one", retry_after_s)
