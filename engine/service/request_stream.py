"""The messages of one stream, as its handler reads them."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

import grpc

from engine.errors import EngineError, StreamIdle
from engine.telemetry.metrics import MethodFigures

# A stream that is not idle yet is looked at again after this time or more.
_LOOK_S = 0.01
# The event loop keeps cancelled timers for a while, with their context, in which the call would be.
_NOBODYS = Context()


class RequestStream:
    """The messages of a stream, to its end or until the server's; each has one answer, in their order.

    The permit of the call counts their bytes, and says when there are too many. `check` is called for each message, and
    by `recheck`; it raises what ends the stream instead. A client that is silent for `max_idle_s` seconds is idle.
    """

    def __init__(
        self,
        context: Any,
        decode: Callable[[bytes], Any],
        method: MethodFigures,
        *,
        check: Callable[[], None],
        max_idle_s: float,
    ) -> None:
        self._context = context
        self._decode = decode
        self._method = method
        self._check = check
        self._max_idle_s = max_idle_s
        self._sizes: deque[int] = deque()  # of the messages without an answer
        self._interrupted = False
        self._complete = False
        self._refusal: EngineError | None = None
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(max_idle_s, self._look, context=_NOBODYS)

    @property
    def cut_off(self) -> bool:
        """Whether the client may have had more to say."""
        return self._interrupted and not self._complete

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> Any:
        # One message of each stream is read in any case, so that every stream goes on.
        if self._sizes:
            await self._context.permit.wait_for_room(unless=lambda: not self._sizes)
        data = await self._context.read()
        if self._refusal is not None:
            raise self._refusal
        if self._interrupted:
            raise StopAsyncIteration
        if data is grpc.aio.EOF:
            self._complete = True
            raise StopAsyncIteration
        self._check()
        self._method.received(len(data))
        self._sizes.append(len(data))
        self._last = self._loop.time()
        return self._decode(data)

    def answered(self) -> None:
        """The first of the messages without an answer has got it."""
        if self._sizes:
            self._context.permit.answered(self._sizes.popleft())
            self._last = self._loop.time()

    def close(self) -> None:
        """Looks for idleness no more: the stream is over."""
        self._timer.cancel()

    def interrupt(self) -> None:
        """Ends the iteration, also where somebody waits for the next message."""
        self._interrupted = True
        self._context.end_reading()

    def recheck(self) -> None:
        """Ends the iteration with what the check has against it now, if anything."""
        try:
            self._check()
        except EngineError as error:
            self._end(error)

    def _look(self) -> None:
        """Ends the iteration when the client has been silent for too long, and waits for no answer."""
        silent = self._loop.time() - self._last
        if silent >= self._max_idle_s and not self._sizes:
            self._end(StreamIdle(f"the stream had no request for {self._max_idle_s:g} s; open another one"))
        else:
            self._timer = self._loop.call_later(max(self._max_idle_s - silent, _LOOK_S), self._look, context=_NOBODYS)

    def _end(self, refusal: EngineError) -> None:
        self._refusal = refusal
        self.interrupt()
