"""The server: ports, services, and the way from the queue's thread to the event loop.

Whoever takes core's events judges new calls, refuses those that can't be let in, and hands the others over to the event
loop, which runs the handlers. The queue's thread takes them while the event loop has nothing to do. Once it has called
the loop it steps aside, and the loop takes what else comes until there is nothing left: the two would only wait for
each other at the interpreter, several times a call.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc

from engine.errors import StartupError
from engine.transport.call import ServerCall
from engine.transport.core import Core, CoreCall, Metadata
from engine.transport.permit import Permit, Unlimited

logger = logging.getLogger(__name__)


# What a call is ended with: status, sentence, trailing metadata.
Ending = tuple[grpc.StatusCode, str, Metadata]

# How often calls are looked for whose message is late.
_LOOK_EVERY_S = 0.5
# Longer than an answer and the next call of its client are on the wire, in the same data centre.
_QUIET_S = 0.03


class Server:
    """Answers calls on the running event loop. Handlers are those of grpc.aio, of bytes, other than stream_unary.

    Args:
        options: Channel arguments of gRPC core.
        admit: Judges each call of a known method by what came before its message, which is not asked for earlier: what
            the call holds from then on, or what it is ended with. On any thread, by one at a time.
        incomplete: Is told (path, client) of a call that ended before its message had come.
        unknown: Is told of each call of a method that nobody handles, where events are taken.
        message_limit_s: How long the message of a call may take, seconds.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, int]] = (),
        admit: Callable[[CoreCall], Permit | Ending] = lambda call: Unlimited(),
        incomplete: Callable[[str, str], None] = lambda path, client: None,
        unknown: Callable[[], None] = lambda: None,
        message_limit_s: float = math.inf,
    ) -> None:
        self._admit = admit
        self.incomplete = incomplete
        self._unknown = unknown
        self._message_limit_s = message_limit_s
        self._awaited: dict[ServerCall, float] = {}  # whose message is to come, by when they came
        self._look: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[str, Any] = {}  # by path
        self._work: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._called = False  # the event loop is at its turns, or about to be
        self._takes_events = False  # it takes core's events meanwhile
        self._core = Core(options, self._arrived)
        self._started = False
        self._leaving = False
        self._stopped = False
        self._ended = asyncio.Event()
        self.may_end = asyncio.Event()  # calls end while it is set
        self.may_end.set()

    def add_service(self, name: str, handlers: Mapping[str, Any]) -> None:
        """Adds a service, before the start: by method what `grpc.unary_unary_rpc_method_handler` and the like give."""
        self._handlers.update({f"/{name}/{method}": handler for method, handler in handlers.items()})

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Takes a port, with TLS or without; gives its number.

        Raises:
            StartupError: When it can't be had.
        """
        port = self._core.listen(address, credentials)
        if not port:
            raise StartupError(f"can't listen on {address}: gRPC can't have it; choose another --host or --port")
        return port

    async def start(self) -> None:
        """Takes calls."""
        self._core.start()
        self._started = True
        if self._message_limit_s < math.inf:
            self._expire()

    async def go_away(self) -> None:
        """Takes no more connections, and asks clients to leave theirs (GOAWAY); calls that have come go on.

        Core cancels calls that come before their client has heard of it. So no call ends for a moment before: who
        calls again once he is answered hears of it first.
        """
        if self._leaving:
            return
        self._leaving = True
        if not self._started:
            self._core.start()  # core can't end a server, and so frees no port, before its start
        self.may_end.clear()
        try:
            await asyncio.sleep(_QUIET_S if self._started else 0)
        finally:
            self._core.shutdown(lambda: self.post(self._ended.set))
            self.may_end.set()

    async def stop(self, grace: float) -> None:
        """Goes away, cancels the calls that last longer than `grace` seconds, and frees the ports."""
        if self._stopped:
            return
        self._stopped = True
        if self._look is not None:
            self._look.cancel()
        await self.go_away()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended.wait(), grace)
        self._core.cancel_calls()
        await self._ended.wait()
        self._core.close()

    def _arrived(self, call: CoreCall) -> None:
        if (handler := self._handlers.get(call.path)) is None:
            self._unknown()
            call.refuse(grpc.StatusCode.UNIMPLEMENTED, "the server has no such method")
            return
        permit = self._admit(call)
        if isinstance(permit, tuple):
            call.refuse(*permit)
            return
        served = ServerCall(self, call, handler, permit)
        if not handler.request_streaming:
            self._awaited[served] = time.monotonic()
        served.open()

    def hand_over(self, call: ServerCall, message: bytes | None) -> None:
        """Has a call started on the event loop, with its message; None where none comes, or several do."""
        self._awaited.pop(call, None)
        self.post(call.start, message)

    def _expire(self) -> None:
        """On the event loop: ends calls whose message is late, from time to time."""
        late = time.monotonic() - self._message_limit_s
        for call, came in list(self._awaited.items()):
            if came > late:
                break
            self._awaited.pop(call, None)
            call.expire(self._message_limit_s)
        self._look = self._loop.call_later(min(_LOOK_EVERY_S, self._message_limit_s), self._expire)

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Has a function called on the event loop, from any thread; calls are kept in their order."""
        self._work.append((function, arguments))
        if not self._called:
            self._call_loop()

    def _call_loop(self) -> None:
        # Set first: the event loop may be through before the next lines end.
        self._called = True
        if self._takes_events:
            self._core.step_aside()
        with suppress(RuntimeError):  # the event loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._take_turn)

    def _take_turn(self, before: int = 0) -> None:
        """On the event loop: takes events, and does what was posted; again and again while there is any."""
        taken = self._core.take_events() if self._takes_events else False
        posted = len(self._work)
        for _ in range(posted):
            function, arguments = self._work.popleft()
            try:
                function(*arguments)
            except Exception:
                logger.exception("a call could not be begun or ended")
        if self._takes_events and (taken or posted):
            self._loop.call_soon(self._take_turn, before + posted)
            return
        self._core.resume()
        # Not for one call at a time: the queue's thread waits for its next event by then.
        self._takes_events = before + posted > 1
        self._called = False
        if self._work:  # posted meanwhile, by one who saw that the loop was called
            self._call_loop()
