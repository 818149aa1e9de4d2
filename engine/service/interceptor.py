"""What every call passes on its way in and out: admission, limits, statuses, figures, log and traces.

A call is judged by what comes before its message: client, token, room; of one that is refused no message is received.
Handlers are wrapped once, when a servicer is registered, and see bytes also where they are no message.
"""

import itertools
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import lru_cache
from typing import Any

import grpc

from engine.access.admission import Admission, CallPermit, Guards
from engine.access.auth import name_in_certificate
from engine.errors import EngineError, ShuttingDown
from engine.service.call_scope import CallScope, CallServices
from engine.service.request_stream import RequestStream
from engine.service.status import RpcStatus, rpc_status_of
from engine.telemetry.logs import CallLog
from engine.telemetry.metrics import MethodFigures, Metrics
from engine.telemetry.tracing import Tracing
from engine.transport import Server
from engine.transport.core import CoreCall

_INCOMPLETE = "the call ended before its message had come: it was too large or too late, or the client gave up"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")

# A name for calls that come without one, which no call of another server has.
_ids = itertools.count(1)
_id_prefix = secrets.token_hex(5)

# Health answers whatever else is held, and everyone: it has room of its own. Its messages are a few bytes, but a client
# may send others.
_PROBES = 1024
_PROBE_MESSAGES = 8


class CallInterceptor:
    """Wraps the handlers of servicers. Construct it inside a running event loop.

    Args:
        metrics: What counts calls.
        guards: What calls are held to.
        tracing: Where spans go; None: nowhere.
        max_stream_idle_s: How long a stream may be without a message.

    Attributes:
        admission: Counts calls; it is to be opened.
        metrics: What counts calls.
    """

    def __init__(
        self, metrics: Metrics, guards: Guards, tracing: Tracing | None = None, max_stream_idle_s: float = 600.0
    ) -> None:
        self.admission = Admission(guards)
        size = guards.max_message_bytes
        self._probes = Admission(Guards(max_calls=_PROBES, max_bytes=_PROBE_MESSAGES * size, max_message_bytes=size))
        self._probes.open()
        self._methods: dict[str, MethodFigures] = {}  # those that aren't probes, by path
        self._streaming: set[str] = set()  # their paths, where they are streams
        self._refusals = CallLog(logging.getLogger("engine.service"))  # used by who takes core's events only
        self.metrics = metrics
        self._max_stream_idle_s = max_stream_idle_s
        self._services = CallServices(self.admission, CallLog(logging.getLogger("engine.service")), tracing)
        self._streams: set[RequestStream] = set()
        metrics.gauge("calls_in_flight", "Calls whose answer has not left.", lambda: self.admission.total.calls)
        metrics.gauge(
            "bytes_in_flight",
            "Bytes of their requests and answers, and of room for requests to come.",
            lambda: self.admission.total.bytes + self.admission.total.windows,
        )

    def register(self, add: Callable[[Any, Any], None], servicer: Any, server: Server) -> None:
        """Adds a servicer to a server, its handlers wrapped.

        Args:
            add: The generated function that adds it, for example `add_HealthServicer_to_server`.
            servicer: What answers.
            server: Where to.
        """
        add(servicer, _Registrar(self, server))

    def admit(self, call: CoreCall) -> CallPermit | RpcStatus:
        """What a call has from now on, or what it is ended with; for `engine.transport.Server`."""
        client, method = host_of(call.peer()), self._methods.get(call.path)
        if method is None:
            try:
                return self._probes.admit(client)
            except EngineError as error:
                return rpc_status_of(error, "")
        guards, request_id, authorization = self.admission.guards, "", None
        for key, value in call.metadata:
            if key == "x-request-id" and isinstance(value, str) and _SANE_ID.fullmatch(value):
                request_id = value
            elif key == "authorization":
                authorization = value
        request_id = request_id or f"{_id_prefix}-{next(_ids):x}"
        try:
            if guards.tokens is not None:
                client = guards.tokens.name_of(authorization)
            elif guards.certificates and (name := name_in_certificate(call.auth_context())):
                client = name
            permit = self.admission.admit(client, call.path, stream=call.path in self._streaming)
        except EngineError as error:
            found = rpc_status_of(error, request_id)
            method.refused(found.code.name)
            self._refusals.failed(method.name, found.code.name, client, 0.0, found.message)
            return found
        permit.request_id = request_id
        if guards.tokens is not None:
            permit.authorization, permit.version = authorization, guards.tokens.version
        return permit

    def incomplete(self, path: str, client: str) -> None:
        """A call ended before its message had come; for `engine.transport.Server`."""
        if method := self._methods.get(path):
            method.incomplete += 1
            self._services.log.failed(method.name, "CANCELLED", client, 0.0, _INCOMPLETE)

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
        method = self._methods[path] = self.metrics.method(path)
        if handler.stream_stream:
            self._streaming.add(path)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._answering(method, handler))
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(self._conversing(method, handler))
        raise NotImplementedError(f"{method.name} is neither unary nor a stream in both directions")

    def _answering(self, method: MethodFigures, handler: Any) -> Callable[[bytes, Any], Any]:
        decode, encode, answer = handler.request_deserializer, handler.response_serializer, handler.unary_unary
        services = self._services

        async def call(request: bytes, context: Any) -> bytes:
            with CallScope(services, method, context) as scope:
                scope.begin()
                method.received(len(request))
                response: bytes = encode(await answer(decode(request), scope))
                method.sent_bytes += len(response)
                context.permit.answered(len(request), len(response))
                return response
            await scope.refuse()

        return call

    def _conversing(self, method: MethodFigures, handler: Any) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        decode, encode, answers = handler.request_deserializer, handler.response_serializer, handler.stream_stream

        async def call(requests: Any, context: Any) -> AsyncIterator[bytes]:
            with CallScope(self._services, method, context) as scope:
                scope.begin()
                messages = RequestStream(context, decode, method, check=scope.check, max_idle_s=self._max_stream_idle_s)
                self._streams.add(messages)
                try:
                    async with aclosing(answers(messages, scope)) as responses:
                        async for response in responses:
                            data = encode(response)
                            method.sent_bytes += len(data)
                            yield data
                            messages.answered()
                finally:
                    messages.close()
                    self._streams.discard(messages)
                if messages.cut_off:
                    raise ShuttingDown("the server is shutting down; send what is unanswered to another one")
                return
            await scope.refuse()

        return call


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


@lru_cache(maxsize=4096)
def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer, for example ipv4:127.0.0.1:50051 or ipv6:%5B::1%5D:50051."""
    kind, _, address = peer.partition(":")
    return address.rpartition(":")[0] if kind.startswith("ip") else peer
