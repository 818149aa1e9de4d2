"""The messages of one stream, as its handler reads them."""

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from engine.calls.admission import Admission
from engine.errors import EngineError
from engine.telemetry.metrics import MethodFigures

_PAUSE_S = 0.01


class Messages:
    """The messages of a stream, to its end or until the server's; each has one answer, in their order.

    Args:
        admission: Counts their bytes, and says when there are too many.
        context: Of the call.
        decode: Makes a message of bytes.
        method: Counts them.
        check: Is called for each message, and by `recheck`; raises what ends the stream instead.
        failed: Takes status and sentence of an answer that is an error.
    """

    def __init__(
        self,
        admission: Admission,
        context: Any,
        decode: Callable[[bytes], Any],
        method: MethodFigures,
        *,
        check: Callable[[], None],
        failed: Callable[[str, str], None],
    ) -> None:
        self._admission = admission
        self._context = context
        self._decode = decode
        self._method = method
        self._check = check
        self._failed = failed
        self._sizes: deque[int] = deque()  # of the messages without an answer
        self._kept = 0  # size of the one that stays in memory
        self._held = 0  # what else is held for this stream
        self._closed = False
        self._interrupted = False
        self._complete = False
        self._refusal: EngineError | None = None
        self._reader: asyncio.Task[Any] | None = None

    @property
    def cut_off(self) -> bool:
        """Whether the client may have had more to say."""
        return self._interrupted and not self._complete

    def __aiter__(self) -> "Messages":
        return self

    async def __anext__(self) -> Any:
        if self._interrupted:
            self._stop()
        self._reader = task = asyncio.current_task()
        try:
            # One message of each stream is read in any case, so that every stream goes on.
            while self._sizes and self._admission.is_full:
                await asyncio.sleep(_PAUSE_S)
            data = await self._context.read()
        except asyncio.CancelledError:
            if not self._takes_back(task):
                raise
            self._stop()
        finally:
            self._reader = task = None  # a task that was cancelled holds the error, whose frame is this one
        if data is grpc.aio.EOF:
            self._complete = True
            raise StopAsyncIteration
        self._check()
        self._method.received(len(data))
        self._sizes.append(len(data))
        self._admission.hold(len(data))
        return self._decode(data)

    def answered(self) -> None:
        """The first of the messages without an answer has got it."""
        if self._sizes:
            self._admission.hold(-self._sizes.popleft())

    def hold(self, size: int) -> None:
        """As `engine.calls.call.Stream` says."""
        if not self._closed:  # what was cancelled tidies up later
            self._held += size
            self._admission.hold(size)

    def keep(self) -> None:
        """As `engine.calls.call.Stream` says."""
        self._admission.hold(-self._kept)
        self._kept, self._sizes[-1] = self._sizes[-1], 0

    def replied(self, code: str, error: str) -> None:
        """As `engine.calls.call.Stream` says."""
        self._method.answered(code)
        if error:
            self._failed(code, error)

    def close(self) -> None:
        """Nobody waits for answers any more."""
        self._admission.hold(-sum(self._sizes) - self._kept - self._held)
        self._closed = True
        self._sizes.clear()

    def interrupt(self) -> None:
        """Ends the iteration, also where somebody waits for the next message."""
        self._interrupted = True
        if self._reader is not None:
            self._reader.cancel()

    def recheck(self) -> None:
        """Ends the iteration with what the check has against it now, if anything."""
        try:
            self._check()
        except EngineError as error:
            self._refusal = error
            self.interrupt()

    def _stop(self) -> NoReturn:
        if self._refusal is not None:
            raise self._refusal
        raise StopAsyncIteration

    def _takes_back(self, task: "asyncio.Task[Any] | None") -> bool:
        """Whether a cancellation was this object's own, and nobody else's; before Python 3.11 nobody can tell."""
        if not self._interrupted:
            return False
        return sys.version_info < (3, 11) or task is None or task.uncancel() == 0
