"""What every call passes on its way in and out: admission, limits, statuses, figures, log and traces.

Handlers are wrapped once, when a servicer is registered, and see bytes also where they are no message.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc

from engine.calls.access import RateLimit
from engine.calls.admission import Admission, Guards
from engine.calls.door import Door
from engine.calls.messages import Messages
from engine.calls.scope import Desk, Visit
from engine.errors import ShuttingDown
from engine.telemetry.logs import CallLog
from engine.telemetry.metrics import MethodFigures, Metrics
from engine.telemetry.tracing import Tracing
from engine.transport import Server

_UNHEARD = "the call ended before its message had come: it was too large or too late, or the client gave up"


class CallInterceptor:
    """Wraps the handlers of servicers. Construct it inside a running event loop.

    Args:
        metrics: What counts calls.
        guards: What calls are held to.
        tracing: Where spans go; None: nowhere.
        max_stream_idle_s: How long a stream may be without a message.

    Attributes:
        admission: Counts calls; it is to be opened.
        door: Lets calls in.
        metrics: What counts calls.
    """

    def __init__(
        self, metrics: Metrics, guards: Guards, tracing: Tracing | None = None, max_stream_idle_s: float = 600.0
    ) -> None:
        self.admission = Admission(guards)
        self.door = Door(self.admission, CallLog(logging.getLogger("engine.calls")))
        self.metrics = metrics
        self._max_stream_idle_s = max_stream_idle_s
        self._desk = Desk(self.admission, CallLog(logging.getLogger("engine.calls")), tracing)
        self._streams: set[Messages] = set()
        metrics.gauge("calls_in_flight", "Calls whose answer has not left.", lambda: self.admission.calls)
        metrics.gauge(
            "bytes_in_flight",
            "Bytes of their requests and answers, and of room for requests to come.",
            lambda: self.admission.held + self.admission.windows,
        )

    def register(self, add: Callable[[Any, Any], None], servicer: Any, server: Server) -> None:
        """Adds a servicer to a server, its handlers wrapped.

        Args:
            add: The generated function that adds it, for example `add_HealthServicer_to_server`.
            servicer: What answers.
            server: Where to.
        """
        add(servicer, _Registrar(self, server))

    def unheard(self, path: str, client: str) -> None:
        """A call ended before its message had come; for `engine.transport.Server`."""
        if method := self.door.methods.get(path):
            method.unheard += 1
            self._desk.log.failed(method.name, "CANCELLED", client, 0.0, _UNHEARD)

    async def drain(self, timeout: float) -> None:
        """Refuses new calls with UNAVAILABLE, and returns when the accepted ones are answered.

        Streams read no more messages, and end when those that were read are answered.

        Args:
            timeout: When to give up waiting, seconds.
        """
        self.admission.close()
        for messages in self._streams:
            messages.interrupt()
        await self.admission.wait_until_idle(timeout)

    def recheck(self) -> None:
        """Ends the streams whose tokens are gone, idle ones too; for whoever has read the tokens again."""
        for messages in self._streams:
            messages.recheck()

    def wrap(self, path: str, handler: Any) -> Any:
        """A handler that takes and gives bytes, around one that takes and gives messages."""
        method = self.door.methods[path] = self.metrics.method(path)
        if handler.stream_stream:
            self.door.streams.add(path)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._answering(method, handler))
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(self._conversing(method, handler))
        raise NotImplementedError(f"{method.name} is neither unary nor a stream in both directions")

    def _answering(self, method: MethodFigures, handler: Any) -> Callable[[bytes, Any], Any]:
        decode, encode, answer = handler.request_deserializer, handler.response_serializer, handler.unary_unary
        desk, account = self._desk, _Account(self.admission.guards.rate, method)

        async def call(request: bytes, context: Any) -> bytes:
            with Visit(desk, method, context) as visit:
                visit.admit(account)
                method.received(len(request))
                response: bytes = encode(await answer(decode(request), context))
                method.sent_bytes += len(response)
                context.ticket.answered(len(request), len(response))
                return response
            await visit.refuse()

        return call

    def _conversing(self, method: MethodFigures, handler: Any) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        decode, encode, answers = handler.request_deserializer, handler.response_serializer, handler.stream_stream
        account = _Account(self.admission.guards.rate, method)

        async def call(requests: Any, context: Any) -> AsyncIterator[bytes]:
            with Visit(self._desk, method, context) as visit:
                visit.admit(account)
                messages = Messages(
                    context,
                    decode,
                    method,
                    check=visit.check,
                    failed=visit.failed_inside,
                    max_idle_s=self._max_stream_idle_s,
                )
                visit.call.stream = messages
                self._streams.add(messages)
                try:
                    async with aclosing(answers(messages, context)) as responses:
                        async for response in responses:
                            data = encode(response)
                            method.sent_bytes += len(data)
                            yield data
                            messages.answered()
                finally:
                    visit.call.stream = None  # they know each other, and so would stay until Python looks for such
                    messages.close()
                    self._streams.discard(messages)
                if messages.cut_off:
                    raise ShuttingDown("the server is shutting down; send what is unanswered to another one")
                return
            await visit.refuse()

        return call


class _Account:
    """As `engine.calls.call.Account` says, for the calls of a method."""

    def __init__(self, rate: RateLimit | None, method: MethodFigures) -> None:
        self._rate = rate
        self._method = method

    def spend(self, client: str, images: int) -> None:
        if self._rate is not None:
            self._rate.spend(client, images)

    def give_back(self, client: str, images: int) -> None:
        if self._rate is not None:
            self._rate.give_back(client, images)

    def count(self, images: int) -> None:
        self._method.images += images


class _Registrar:
    """What a generated `add_..._to_server` takes for a server."""

    def __init__(self, interceptor: CallInterceptor, server: Server) -> None:
        self._interceptor = interceptor
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The same handlers come to `add_registered_method_handlers`, by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        wrapped = {name: self._interceptor.wrap(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
