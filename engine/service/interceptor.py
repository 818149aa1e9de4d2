"""What every call passes on its way in and out: admission, limits, statuses, figures, log and traces.

A call is judged by what comes before its message: client, token, room; of one that is refused no message is received.
Handlers are wrapped once, when a service is registered, and see bytes also where they are no message.
"""

import ipaddress
import itertools
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from engine.access.admission import Admission, CallPermit, Limits, window_of
from engine.access.auth import Tokens, name_in_certificate
from engine.access.rate_limit import RateLimit
from engine.config import ServerConfig
from engine.errors import EngineError, Overloaded, ShuttingDown, release_frames
from engine.service.deserializer import deserializer
from engine.service.request_scope import Call
from engine.service.request_stream import RequestStream
from engine.service.status import RpcStatus, domain_error, rpc_status_of
from engine.telemetry import logs
from engine.telemetry.logs import CallLog
from engine.telemetry.metrics import MethodFigures, Metrics
from engine.telemetry.tracing import SpanEnd, Tracing
from engine.transport import Server
from engine.transport.core import CoreCall

_Decode = Callable[[bytes], Any]

_INCOMPLETE = "the call ended before its message had come: it was too large or too late, or the client gave up"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")
_OK, _LATE, _CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED

# A name for calls that come without one, which no call of another server has.
_ids = itertools.count(1)
_id_prefix = secrets.token_hex(5)

# Health answers whatever else is held, and asks nobody for a token: it has room of its own. Its messages are a few
# bytes, but a client may send others.
PROBES = 1024
"""Calls of health at once."""
_PROBE_MESSAGES = 8
_LEAST_PROBE_BYTES = 16 * 2**20  # or the windows of two probes would not fit where messages are small


class CallInterceptor:
    """Wraps the handlers of servicers. Construct it inside a running event loop, and open its admission.

    Raises:
        StartupError: When the configuration names a file of tokens that can't be used.
    """

    def __init__(self, metrics: Metrics, config: ServerConfig, tracing: Tracing | None = None) -> None:
        self.tokens = Tokens(config.tokens) if config.tokens else None
        rate, burst = config.max_images_per_second, config.burst
        self.rate = RateLimit(rate, burst or max(1.0, rate)) if rate else None
        calls, streams = config.max_calls_in_flight, config.max_streams_in_flight
        size, most = config.max_message_bytes, config.max_bytes_in_flight
        window = window_of(most)
        self.admission = Admission(Limits(calls, streams, most, size, window))
        for_probes = max(_PROBE_MESSAGES * size, _LEAST_PROBE_BYTES)
        self._probes = Admission(Limits(PROBES, PROBES, for_probes, size, window))
        self._probes.open()
        self._certificates = config.tls_client_ca is not None
        self._methods: dict[str, MethodFigures] = {}  # those that aren't probes, by path
        self._streaming: set[str] = set()  # their paths, where they are streams
        self.metrics, self.tracing = metrics, tracing
        self._max_stream_idle_s = config.max_stream_idle_s
        self.log = CallLog()
        self._streams: set[RequestStream] = set()
        metrics.gauge("calls_in_flight", "Calls whose answer has not left.", lambda: self.admission.total.calls)
        metrics.gauge(
            "bytes_in_flight",
            "Bytes of their requests and answers, and of room for requests to come.",
            lambda: self.admission.total.bytes + self.admission.total.windows,
        )

    def register(self, server: Server, service: ServiceDescriptor, servicer: Any, name: str = "") -> None:
        """Adds a service, whose methods the servicer's of the same names answer; by another `name` if one is given."""
        name = name or service.full_name
        handlers = {
            method.name: self._handler(f"/{name}/{method.name}", method, servicer) for method in service.methods
        }
        server.add_service(name, handlers)

    def admit(self, call: CoreCall) -> CallPermit | RpcStatus:
        """What a call has from now on, or what it is ended with; for `engine.transport.Server`."""
        client, method = host_of(call.peer()), self._methods.get(call.path)
        if method is None:
            try:
                return self._probes.admit(client)
            except EngineError as error:
                return rpc_status_of(error, "")
        metadata = dict(call.metadata)
        request_id, authorization = metadata.get("x-request-id"), metadata.get("authorization")
        if not isinstance(request_id, str) or not _SANE_ID.fullmatch(request_id):
            request_id = f"{_id_prefix}-{next(_ids):x}"
        try:
            if self.tokens is not None:
                client = self.tokens.name_of(authorization)
            elif self._certificates and (name := name_in_certificate(call.auth_context())):
                client = name
            permit = self.admission.admit(client, call.path, stream=call.path in self._streaming)
        except EngineError as error:
            found = rpc_status_of(error, request_id)
            method.ended(found.code.name)
            self.log.failed(method.name, found.code.name, client, 0.0, found.message)
            return found
        permit.request_id, permit.authorization = request_id, authorization
        return permit

    def incomplete(self, path: str, client: str) -> None:
        """A call ended before its message had come; for `engine.transport.Server`."""
        if method := self._methods.get(path):
            method.unheard.inc()
            self.log.failed(method.name, "CANCELLED", client, 0.0, _INCOMPLETE)

    async def drain(self, timeout: float) -> None:
        """Refuses new calls with UNAVAILABLE; returns when the accepted ones are answered, or after `timeout` seconds.

        Streams read no more messages, and end when those that were read are answered.
        """
        self.admission.close()
        for messages in self._streams:
            messages.interrupt()
        await self.admission.wait_until_idle(timeout)

    def reload_tokens(self) -> None:
        """Reads the tokens again, where there are some; ends the streams whose token is gone, idle ones too."""
        if self.tokens is not None:
            self.tokens.reload()
            for messages in self._streams:
                messages.recheck()

    def _handler(self, path: str, definition: MethodDescriptor, servicer: Any) -> Any:
        """A handler that takes and gives bytes, around a method that takes and gives messages."""
        method, decode = self.metrics.method(path), deserializer(GetMessageClass(definition.input_type))
        bound = method, decode, getattr(servicer, definition.name)
        self._methods[path] = method
        match definition.client_streaming, definition.server_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(partial(self._answer, *bound))
            case True, True:
                self._streaming.add(path)
                return grpc.stream_stream_rpc_method_handler(partial(self._converse, *bound))
        raise NotImplementedError(f"{method.name} is neither unary nor a stream in both directions")

    async def _answer(
        self, method: MethodFigures, decode: _Decode, answer: Callable[..., Any], request: bytes, context: Any
    ) -> bytes:
        async with CallScope(self, method, context) as scope:
            scope.begin()
            size = len(request)
            method.received(size)
            answering = answer(decode(request), scope)
            del request  # its bytes are in the message, too, which is the handler's to drop
            response: bytes = (await answering).SerializeToString()
            method.sent_bytes.inc(len(response))
            context.permit.answered(size, len(response))
        return response

    async def _converse(
        self, method: MethodFigures, decode: _Decode, answers: Callable[..., Any], requests: Any, context: Any
    ) -> AsyncIterator[bytes]:
        async with CallScope(self, method, context) as scope:
            scope.begin()
            messages = RequestStream(context, decode, method, check=scope.check, max_idle_s=self._max_stream_idle_s)
            self._streams.add(messages)
            try:
                scope.check()  # tokens may have been read again since the call was admitted
                async with aclosing(answers(messages, scope)) as responses:
                    async for response in responses:
                        data: bytes = response.SerializeToString()
                        method.sent_bytes.inc(len(data))
                        del response
                        yield data
                        del data  # what has left doesn't stay while the next one is waited for
                        messages.answered()
            finally:
                messages.close()
                self._streams.discard(messages)
            if messages.cut_off:
                raise ShuttingDown("what is unanswered")


class CallScope(Call):
    """A call, as a context around its answer, which ends it where that raises something.

    Handlers get it in place of gRPC's context. Its client is the name of the token, or of the certificate, else the
    peer's host.
    """

    def __init__(self, calls: CallInterceptor, method: MethodFigures, context: Any) -> None:
        permit = context.permit
        self._arrived = time.perf_counter()
        self._calls = calls
        self._method = method
        self._context = context
        self.client: str = permit.client
        self._request_id = permit.request_id
        self._images = 0  # that there was room for
        self._end_span: SpanEnd | None = None

    def begin(self) -> None:
        """Begins to answer the call.

        Raises:
            EngineError: When there is no room for its message.
        """
        logs.request_id.set(self._request_id)
        self._context.set_trailing_metadata((("x-request-id", self._request_id),))
        if self._calls.tracing is not None:
            metadata = self._context.invocation_metadata()
            self._end_span = self._calls.tracing.start(self._method.path, self._request_id, metadata)
        if (refusal := self._context.permit.refusal) is not None:
            raise refusal

    def time_remaining(self) -> float | None:
        """As `Call` says."""
        left: float | None = self._context.time_remaining()
        return left

    @contextmanager
    def spend(self, images: int) -> Iterator[None]:
        """As `Call` says."""
        rate = self._calls.rate
        if rate is not None:
            rate.spend(self.client, images)
        spent = images
        try:
            yield
        except Overloaded:
            if rate is not None:
                rate.give_back(self.client, images)
            spent = 0
            raise
        finally:
            self._method.images.inc(spent)
            self._images += spent

    def hold(self, size: int) -> None:
        """As `Call` says."""
        self._context.permit.hold(size)

    def replied(self, code: str, error: str) -> None:
        """As `Call` says."""
        self._method.answered(code)
        if error:
            self._calls.log.failed_in_stream(self._method.name, code, self.client, error)

    def check(self) -> None:
        """Lets a stream go on whose token has not been withdrawn meanwhile.

        Raises:
            Unauthenticated: When it has.
        """
        if (tokens := self._calls.tokens) is not None:
            tokens.name_of(self._context.permit.authorization)

    async def __aenter__(self) -> "CallScope":
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        seconds = time.perf_counter() - self._arrived
        log, method, client = self._calls.log, self._method.name, self.client
        refusal = None
        if error is None:
            code, message = _OK, ""
            if log.verbose:
                log.answered(method, client, seconds)
        elif isinstance(error, Exception):
            refusal = rpc_status_of(domain_error(error, method), self._request_id)
            code, message = refusal.code, refusal.message
            log.failed(method, code.name, client, seconds, message)
            if isinstance(error, Overloaded) and error.recheck is not None:
                self._context.permit.usage.overloaded[self._method.path] = error.recheck
            release_frames(error)
        else:
            late = self._context.time_remaining() == 0
            code, message = (_LATE if late else _CANCELLED), "given up"
            log.failed(method, code.name, client, seconds, message)
        self._method.ended("OK" if code is _OK else code.name, seconds)
        if self._end_span is not None:
            self._end_span(code.name, message, self._images)
        if refusal is not None:
            # It answers with nothing but a status, which is what lets clients' retry policies try again; setting code
            # and details would send a header first.
            await self._context.abort(*refusal)


def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer, for example ipv4:127.0.0.1:50051; of IPv6 its network.

    A machine that speaks IPv6 may take any of the 2^64 addresses of its network, and would be as many clients.
    """
    kind, _, address = peer.partition(":")
    host = unquote(address.rpartition(":")[0]).strip("[]")
    if kind == "ipv6" and host != "::1":
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    return host if kind in ("ipv4", "ipv6") else peer
