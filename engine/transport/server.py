"""The server: ports and services, and the calls that are being answered.

Whoever takes core's events judges new calls, refuses those that can't be let in, and hands the others over to the event
loop, which runs the handlers.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, NoReturn

import grpc

from engine.errors import FAILED, StartupError
from engine.transport.core import Core, CoreCall, CoreError, Metadata, message_of, was_cancelled
from engine.transport.permit import Permit, Unlimited
from engine.transport.stream_buffers import ReceiveBuffer, SendBuffer

logger = logging.getLogger(__name__)

_NO_MESSAGE = "the call ended without a message; send one"
_LATE = "the message did not come within {:g} s; send it again, or a smaller one"
_NO_ROOM = "there was no room for the message within {:g} s; send it again after a pause, or to another server"

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
        message_limit_s: How long the message of a call may take to come, and its answer to leave, seconds.
        stream_limit_s: How long a stream's client may take none of the answers that wait for it, seconds.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, int]] = (),
        admit: Callable[[CoreCall], Permit | Ending] = lambda call: Unlimited(),
        incomplete: Callable[[str, str], None] = lambda path, client: None,
        unknown: Callable[[], None] = lambda: None,
        *,
        message_limit_s: float = math.inf,
        stream_limit_s: float = math.inf,
    ) -> None:
        self._admit = admit
        self._incomplete = incomplete
        self._unknown = unknown
        self._message_limit_s = message_limit_s
        self._stream_limit_s = stream_limit_s
        self._awaited: dict[ServerCall, float] = {}  # whose message is to come, by when they came
        self._unsent: dict[ServerCall, float] = {}  # whose answer is to leave, by when it was there
        self._look: asyncio.TimerHandle | None = None
        self._handlers: dict[str, Any] = {}  # by path
        self._core = Core(options, self._arrived)
        self._started = False
        self._leaving = False
        self._stopped = False
        self._ended = asyncio.Event()
        self._may_end = asyncio.Event()  # calls end while it is set
        self._may_end.set()

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
        self._may_end.clear()
        try:
            await asyncio.sleep(_QUIET_S if self._started else 0)
        finally:
            self._core.shutdown(self._ended.set)
            self._may_end.set()

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

    def _hand_over(self, call: "ServerCall", message: bytes | None) -> None:
        """On any thread: has a call started, with its message; None where none comes, or several do."""
        self._awaited.pop(call, None)
        self._core.post(call.start, message)

    def _expire(self) -> None:
        """On the event loop: ends calls whose message or answer is late, from time to time."""
        for call in self._late(self._awaited):
            call.expire(self._message_limit_s)
        for call in self._late(self._unsent):
            call.cut_off(self._message_limit_s)
        every = min(_LOOK_EVERY_S, self._message_limit_s)
        self._look = asyncio.get_running_loop().call_later(every, self._expire)

    def _late(self, calls: dict["ServerCall", float]) -> Iterator["ServerCall"]:
        """Takes those that are there longer than a message may take; the oldest come first."""
        late = time.monotonic() - self._message_limit_s
        for call, since in calls.copy().items():  # other threads add some meanwhile
            if since > late:
                return
            calls.pop(call, None)
            yield call


class ServerCall:
    """A call, and what its handler gets as context: the methods of grpc.aio.ServicerContext that this project uses."""

    def __init__(self, server: Server, call: CoreCall, handler: Any, permit: Permit) -> None:
        self._server = server
        self._core = call
        self._handler = handler
        self.permit = permit
        self._task: asyncio.Task[None] | None = None
        self._message: bytes | None = None
        self._gone = False
        self._awaits_message = not handler.request_streaming
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: Metadata = None
        self._inbox = ReceiveBuffer(call, permit, server._core.post) if handler.request_streaming else None
        limit_s = server._stream_limit_s
        self._outbox = SendBuffer(call, server._core.post, limit_s) if handler.response_streaming else None

    # On the queue's thread; `_receive` on that of whoever makes room.

    def open(self) -> None:
        """Starts to listen to the client."""
        try:
            self._core.receive_close(self._closed)
        except CoreError:
            self._fail()
            return
        if self._handler.request_streaming:
            self._server._hand_over(self, None)
        else:
            self.permit.receive_when_room(self._receive)

    def _receive(self) -> None:
        try:
            self._core.receive_message(self._received)
        except CoreError:  # not for whoever made room for the message: that may be another call
            self._fail()

    def _fail(self) -> None:
        """Core has cancelled the call, and perhaps tells nobody."""
        logger.exception("%s could not be begun", self._core.path)
        self._gone = True
        self._server._hand_over(self, None)

    def _received(self, event: Any) -> None:
        message = message_of(event)
        self.permit.received(len(message) if message else 0)
        self._server._hand_over(self, message)

    def _closed(self, event: Any) -> None:
        if was_cancelled(event):
            self._server._core.post(self._leave)

    # On the event loop.

    def start(self, message: bytes | None) -> None:
        """The message has come, or won't; a stream's are yet to come."""
        if message is None and self._awaits_message:
            self._server._incomplete(self._core.path, self.permit.client)
        self._awaits_message = False
        self.permit.started()
        if self._gone:
            self._is_over(None)
        elif self._code is grpc.StatusCode.OK:  # or it has expired
            self._message = message
            self._task = asyncio.get_running_loop().create_task(self._serve())

    def expire(self, limit_s: float) -> None:
        """Ends the call if its message is not there, for which it had `limit_s` seconds."""
        if not self._awaits_message or self._gone:
            return
        self._awaits_message = False
        self._server._incomplete(self._core.path, self.permit.client)
        if self.permit.abandon():
            self._code, self._details = grpc.StatusCode.RESOURCE_EXHAUSTED, _NO_ROOM.format(limit_s)
        else:
            self._code, self._details = grpc.StatusCode.DEADLINE_EXCEEDED, _LATE.format(limit_s)
        self._end(None)

    def cut_off(self, limit_s: float) -> None:
        """Cancels the call: its client did not take the answer within `limit_s` seconds."""
        logger.warning("%s for %s: the answer was not taken within %g s", self._core.path, self.permit.client, limit_s)
        self._core.cancel()

    def _leave(self) -> None:
        self._gone = True
        if self._task is not None:
            task, self._task = self._task, None  # a task that never begins keeps an error whose frame has this call
            task.cancel()
            task.add_done_callback(self._is_over)
        elif self.permit.abandon():
            self._server._hand_over(self, None)

    async def _serve(self) -> None:
        last = await self._handle()
        with suppress(asyncio.CancelledError):  # the client has gone meanwhile
            if self._outbox is not None:
                await self._outbox.drain()
            await self._server._may_end.wait()
        if self._gone:
            self._is_over(None)
        else:
            self._end(last)

    async def _handle(self) -> bytes | None:
        """Has the call handled; gives the answer of one that has a single one."""
        handler = self._handler
        try:
            if handler.request_streaming:
                await self._stream(handler.stream_stream(self._messages(), self))
            elif self._message is None:
                self._code, self._details = grpc.StatusCode.INVALID_ARGUMENT, _NO_MESSAGE
            elif handler.response_streaming:
                await self._stream(handler.unary_stream(self._take_message(), self))
            else:
                return _bytes(await handler.unary_unary(self._take_message(), self))
        except grpc.aio.AbortError:
            pass  # the status is set
        except asyncio.CancelledError:
            self._code, self._details = grpc.StatusCode.CANCELLED, "the call was given up"
        except Exception:
            logger.exception("%s failed", self._core.path)
            self._code, self._details = grpc.StatusCode.INTERNAL, FAILED
        return None

    def _end(self, last: bytes | None) -> None:
        header = self._outbox is None or not self._outbox.is_used
        self._server._unsent[self] = time.monotonic()
        try:
            self._core.end(self._is_over, self._code, self._details, self._trailing, header=header, message=last)
        except Exception:
            logger.exception("%s could not be ended", self._core.path)
            self._core.cancel()
            self._is_over(None)

    def _is_over(self, _: Any) -> None:
        """On any thread."""
        self._server._unsent.pop(self, None)
        self.permit.release()

    async def _stream(self, answers: Any) -> None:
        if hasattr(answers, "__aiter__"):
            async with aclosing(answers):
                async for answer in answers:
                    await self.write(answer)
                    del answer  # it would stay while the next one is waited for
        else:
            await answers

    async def _messages(self) -> AsyncIterator[bytes]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    def _take_message(self) -> bytes:
        """The message, which is the handler's alone from now on: it may drop the bytes before it has answered."""
        message, self._message = self._message, None
        assert message is not None
        return message

    # What handlers use.

    async def read(self) -> Any:
        """The bytes of the next message of a stream; grpc.aio.EOF after the last.

        Raises:
            asyncio.CancelledError: When the client has gone before it had said all.
        """
        assert self._inbox is not None, "only streams are read"
        self._check()
        message = await self._inbox.get()
        if message is not None:
            return message
        self._check()
        return grpc.aio.EOF

    def end_reading(self) -> None:
        """Lets `read` give grpc.aio.EOF after what has come, also to whoever waits in it. On the event loop."""
        assert self._inbox is not None, "only streams are read"
        self._inbox.end()

    async def write(self, answer: Any) -> None:
        """Sends an answer of a stream; while many have not left, it waits: a client that doesn't read holds this up.

        Raises:
            asyncio.CancelledError: When the client has gone.
        """
        assert self._outbox is not None, "only streams are written"
        self._check()
        if not await self._outbox.put(_bytes(answer)):
            raise asyncio.CancelledError

    def _check(self) -> None:
        if self._gone:
            raise asyncio.CancelledError

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = None) -> NoReturn:
        """Ends the call with a status.

        Raises:
            grpc.aio.AbortError: Always.
        """
        self._code, self._details = code, details
        self._trailing = trailing_metadata or self._trailing
        raise grpc.aio.AbortError

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Sets what goes with the status."""
        self._trailing = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the client sent with the call."""
        return self._core.metadata

    def time_remaining(self) -> float | None:
        """Seconds to the deadline, at least 0; None without one."""
        deadline = self._core.deadline
        return None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())


def _bytes(answer: Any) -> bytes:
    if not isinstance(answer, bytes):  # core would find out when the handler is through
        raise TypeError(f"an answer is {type(answer).__name__}, not bytes")
    return answer
