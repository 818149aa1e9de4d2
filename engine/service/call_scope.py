"""One call between its arrival and its end: who makes it, what it is refused with, and what is written down of it."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

import grpc

from engine.access.admission import Admission
from engine.errors import Overloaded, release_frames
from engine.service.call import Account, Call, enter
from engine.service.status import Refusal, domain_error, refusal
from engine.telemetry.logs import CallLog
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

    Args:
        services: What all calls share.
        method: Its RPC.
        context: Of gRPC.

    Attributes:
        call: The call, as its handler sees it.
    """

    _refusal: Refusal | None = None
    _span: Any = None
    _version = 0

    def __init__(self, services: CallServices, method: MethodFigures, context: Any) -> None:
        self._arrived = time.perf_counter()
        self._services = services
        self._method = method
        self._context = context
        self.call = Call("", "", method.name)

    def begin(self, account: Account) -> None:
        """Begins to answer the call.

        Raises:
            EngineError: When there is no room for its message.
        """
        call, context, permit = self.call, self._context, self._context.permit
        call.client, call.request_id, call.account = permit.client, permit.request_id, account
        enter(call)
        context.set_trailing_metadata((("x-request-id", call.request_id),))
        if self._services.tracing is not None:
            metadata = context.invocation_metadata()
            self._span = self._services.tracing.start(self._method.path, call.request_id, metadata)
        self._version = permit.version
        if permit.refusal is not None:
            raise permit.refusal

    def check(self) -> None:
        """Lets a stream go on whose token has not been withdrawn meanwhile.

        Raises:
            Unauthenticated: When it has.
        """
        tokens = self._services.admission.guards.tokens
        if tokens is not None and tokens.version != self._version:
            tokens.name_of(self._context.permit.authorization)
            self._version = tokens.version

    def failed_inside(self, code: str, error: str) -> None:
        """A request of the stream was answered with an error."""
        self._services.log.failed_in_stream(self._method.name, code, self.call.client, error)

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
        call, log = self.call, self._services.log
        if error is None:
            code, message = _OK, ""
            if log.verbose:
                log.answered(call.method, call.client, seconds)
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            self._refusal = refusal(domain_error(error, call.method), call.request_id)
            code, message = self._refusal.code, self._refusal.message
            log.failed(call.method, code.name, call.client, seconds, message)
            if isinstance(error, Overloaded) and error.recheck is not None:
                self._context.permit.usage.overloaded[self._method.path] = error.recheck
            release_frames(error)
        else:
            code, message = self._code_of_the_end(error), "given up"
            log.failed(call.method, code.name, call.client, seconds, message)
        self._method.ended("OK" if code is _OK else code.name, seconds)
        if self._span is not None and self._services.tracing is not None:
            self._services.tracing.end(self._span, code.value[0], message, call.images)
        return self._refusal is not None

    def _code_of_the_end(self, error: BaseException) -> grpc.StatusCode:
        if isinstance(error, grpc.aio.AbortError):
            return self._context.code() or grpc.StatusCode.UNKNOWN
        left = self._context.time_remaining()
        late = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
