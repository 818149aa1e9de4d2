"""One call between its arrival and its end: who makes it, what it is refused with, and what is written down of it."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

import grpc

from engine.access.admission import Admission
from engine.errors import Overloaded, release_frames
from engine.service.status import RpcStatus, domain_error, rpc_status_of
from engine.telemetry.logs import CallLog, request_id
from engine.telemetry.metrics import MethodFigures
from engine.telemetry.tracing import Tracing

_OK = grpc.StatusCode.OK


@dataclass(frozen=True)
class CallServices:
    """What all calls share.

    Attributes:
        admission: Has counted them in.
        log: Has a line for each.
        tracing: Makes a span for each; None: no spans.
    """

    admission: Admission
    log: CallLog
    tracing: Tracing | None


class CallScope:
    """A call, as a context around its answer; `refuse` ends it when the answer raised something.

    Handlers get it in place of gRPC's context: it is a `Call` of `engine.service.request_scope`.

    Args:
        services: What all calls share.
        method: Its RPC.
        context: Of gRPC.

    Attributes:
        client: Whose call it is, for fairness and limits: the name of the token, or of the certificate, else the
            peer's host.
    """

    client = ""
    _request_id = ""
    _images = 0  # that there was room for
    _refusal: RpcStatus | None = None
    _span: Any = None
    _version = 0

    def __init__(self, services: CallServices, method: MethodFigures, context: Any) -> None:
        self._arrived = time.perf_counter()
        self._services = services
        self._method = method
        self._context = context

    def begin(self) -> None:
        """Begins to answer the call.

        Raises:
            EngineError: When there is no room for its message.
        """
        context, permit = self._context, self._context.permit
        self.client, self._request_id = permit.client, permit.request_id
        request_id.set(self._request_id)
        context.set_trailing_metadata((("x-request-id", self._request_id),))
        if self._services.tracing is not None:
            metadata = context.invocation_metadata()
            self._span = self._services.tracing.start(self._method.path, self._request_id, metadata)
        self._version = permit.version
        if permit.refusal is not None:
            raise permit.refusal

    def time_remaining(self) -> float | None:
        """As `Call` says."""
        left: float | None = self._context.time_remaining()
        return left

    def spend(self, images: int) -> None:
        """As `Call` says."""
        if (rate := self._services.admission.guards.rate) is not None:
            rate.spend(self.client, images)

    def give_back(self, images: int) -> None:
        """As `Call` says."""
        if (rate := self._services.admission.guards.rate) is not None:
            rate.give_back(self.client, images)

    def count(self, images: int) -> None:
        """As `Call` says."""
        self._method.images += images
        self._images += images

    def hold(self, size: int) -> None:
        """As `Call` says."""
        self._context.permit.hold(size)

    def replied(self, code: str, error: str) -> None:
        """As `Call` says."""
        self._method.answered(code)
        if error:
            self._services.log.failed_in_stream(self._method.name, code, self.client, error)

    def check(self) -> None:
        """Lets a stream go on whose token has not been withdrawn meanwhile.

        Raises:
            Unauthenticated: When it has.
        """
        tokens = self._services.admission.guards.tokens
        if tokens is not None and tokens.version != self._version:
            tokens.name_of(self._context.permit.authorization)
            self._version = tokens.version

    async def refuse(self) -> NoReturn:
        """Ends the call with what it is refused with.

        `abort` answers with nothing but a status, which is what lets clients' retry policies try again; setting code
        and details would send a header first.
        """
        assert self._refusal is not None
        await self._context.abort(*self._refusal)
        raise AssertionError("abort raises")

    def __enter__(self) -> "CallScope":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        seconds = time.perf_counter() - self._arrived
        log, method, client = self._services.log, self._method.name, self.client
        if error is None:
            code, message = _OK, ""
            if log.verbose:
                log.answered(method, client, seconds)
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            self._refusal = rpc_status_of(domain_error(error, method), self._request_id)
            code, message = self._refusal.code, self._refusal.message
            log.failed(method, code.name, client, seconds, message)
            if isinstance(error, Overloaded) and error.recheck is not None:
                self._context.permit.usage.overloaded[self._method.path] = error.recheck
            release_frames(error)
        else:
            code, message = self._code_of_the_end(error), "given up"
            log.failed(method, code.name, client, seconds, message)
        self._method.ended("OK" if code is _OK else code.name, seconds)
        if self._span is not None and self._services.tracing is not None:
            self._services.tracing.end(self._span, code.name, message, self._images)
        return self._refusal is not None

    def _code_of_the_end(self, error: BaseException) -> grpc.StatusCode:
        if isinstance(error, grpc.aio.AbortError):
            return self._context.code() or grpc.StatusCode.UNKNOWN
        left = self._context.time_remaining()
        late = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
