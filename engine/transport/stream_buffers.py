"""The messages of a stream between core and the event loop, a few of them at a time.

gRPC core takes one message of a call at a time and brings one at a time. If the event loop had to ask for each, it
would be woken twice for each; so who takes core's events asks for the next right away, as long as there is little
that nobody has taken. A handler finds what has come meanwhile, and leaves what is to go, mostly without waiting.
"""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from engine.transport.core import CoreCall, CoreError, message_of
from engine.transport.permit import Permit

logger = logging.getLogger(__name__)

# More than this is not held here, in either direction: who is slow holds up who is fast, through HTTP/2's windows.
MAX_BYTES = 65_536
MAX_MESSAGES = 16

Post = Callable[..., None]


class ReceiveBuffer:
    """Messages that have come, to the last; nothing is read before somebody asks for the first."""

    def __init__(self, call: CoreCall, permit: Permit, post: Post) -> None:
        self._call = call
        self._permit = permit
        self._post = post
        self._lock = threading.Lock()
        self._messages: deque[bytes] = deque()
        self._bytes = 0
        self._asked = False  # core is to bring the next one
        self._ended = False
        self._awaited = False  # a handler waits for `_changed`, and nobody has posted it yet
        self._changed = asyncio.Event()

    async def get(self) -> bytes | None:
        """The next message; None after the last. A caller that is cancelled while it waits takes none."""
        while True:
            with self._lock:
                message = self._messages.popleft() if self._messages else None
                if message is not None:
                    self._bytes -= len(message)
                ask = self._wants_more()
                if waits := message is None and not self._ended:
                    self._awaited = True
                    self._changed.clear()
            if ask:
                self._permit.receive_when_room(self._ask)
            if not waits:
                return message
            await self._changed.wait()

    def end(self) -> None:
        """Takes no more messages, and tells so to whoever waits for one. On the event loop."""
        with self._lock:
            self._ended = True
        self._changed.set()

    def _ask(self) -> None:
        try:
            self._call.receive_message(self._received)
        except CoreError:  # the call is cancelled, and who made room for the message may be another one
            logger.exception("a message of %s could not be asked for", self._call.path)
            self._take(None)

    def _received(self, event: Any) -> None:
        message = message_of(event)
        self._permit.received(len(message) if message else 0)
        if message is not None:
            self._take(message)
        else:
            # Core ends the messages of a call that was given up, too, and may tell so before it tells that the call
            # is over; with one more turn through the queue, handlers don't take the one for the other.
            self._call.receive_message(lambda _: self._take(None))

    def _take(self, message: bytes | None) -> None:
        with self._lock:
            self._asked = False
            if message is None:
                self._ended = True
            else:
                self._messages.append(message)
                self._bytes += len(message)
            ask = self._wants_more()
            awaited, self._awaited = self._awaited, False
        if ask:
            self._permit.receive_when_room(self._ask)
        if awaited:
            self._post(self._changed.set)

    def _wants_more(self) -> bool:
        """Whether core is to be asked for a message, which the caller then does; with the lock held."""
        full = self._bytes >= MAX_BYTES or len(self._messages) >= MAX_MESSAGES
        if self._asked or self._ended or full:
            return False
        self._asked = True
        return True


class SendBuffer:
    """Messages that are to go, in their order. Where none leaves for `limit_s` seconds the call is cancelled."""

    def __init__(self, call: CoreCall, post: Post, limit_s: float) -> None:
        self._call = call
        self._post = post
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._messages: deque[bytes] = deque()  # the first is being sent
        self._bytes = 0
        self._broken = False
        self._awaited = False  # a handler waits for `_changed`, and nobody has posted it yet
        self._changed = asyncio.Event()
        self.is_used = False  # something was put, and so the header is sent

    async def put(self, message: bytes) -> bool:
        """Leaves a message here, when there is room; False when it can't be sent, since the client has gone.

        A caller that is cancelled while it waits leaves none.
        """
        await self._until(lambda: len(self._messages) < MAX_MESSAGES and self._bytes < MAX_BYTES)
        with self._lock:
            if self._broken:
                return False
            self._messages.append(message)
            self._bytes += len(message)
            send = len(self._messages) == 1
            header, self.is_used = not self.is_used, True
        if send:
            self._call.send(self._sent, header=header, message=message)
        return True

    async def drain(self) -> None:
        """Returns when everything has left, or can't."""
        await self._until(lambda: not self._messages)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while True:
            with self._lock:
                if self._broken or holds():
                    return
                self._awaited = True
                self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self._limit_s if self._limit_s < math.inf else None)
            except asyncio.TimeoutError:
                logger.warning("%s: no answer was taken within %g s", self._call.path, self._limit_s)
                self._call.cancel()  # and what was to be sent comes back

    def _sent(self, event: Any) -> None:
        with self._lock:
            self._bytes -= len(self._messages.popleft())
            if not event.success:
                self._broken = True
                self._messages.clear()
            message = self._messages[0] if self._messages else None
            awaited, self._awaited = self._awaited, False
        if message is not None:
            self._call.send(self._sent, header=False, message=message)
        if awaited:
            self._post(self._changed.set)
