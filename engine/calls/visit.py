"""One call between its arrival and its end: who makes it, what it is refused with, and what is written down of it."""

import itertools
import re
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, NoReturn

import grpc

from engine.calls.access import name_in_certificate
from engine.calls.admission import Admission
from engine.calls.call import Account, Call, enter
from engine.calls.details import Refusal, domain_error, refusal
from engine.errors import release_frames
from engine.telemetry.logs import CallLog
from engine.telemetry.metrics import MethodFigures
from engine.telemetry.tracing import Tracing

_OK = grpc.StatusCode.OK
_SANE_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")

# A name for calls that come without one, which no call of another server has.
_ids = itertools.count(1)
_id_prefix = secrets.token_hex(5)


@dataclass(frozen=True)
class Desk:
    """What all calls pass.

    Attributes:
        admission: Lets them in.
        log: Has a line for each.
        tracing: Makes a span for each; None: no spans.
    """

    admission: Admission
    log: CallLog
    tracing: Tracing | None


class Visit:
    """A call, as a context around its answer; `refuse` ends it when the answer raised something.

    Args:
        desk: What it passes.
        method: Its RPC.
        context: Of gRPC.
        size: Bytes of its request.

    Attributes:
        call: The call, as its handler sees it.
    """

    _refusal: Refusal | None = None
    _span: Any = None
    _authorization: str | bytes | None = None
    _version = 0

    def __init__(self, desk: Desk, method: MethodFigures, context: Any, size: int) -> None:
        self._arrived = time.perf_counter()
        self._desk = desk
        self._method = method
        self._context = context
        self._size = size
        self.call = Call("", "", method.name)

    def admit(self, account: Account) -> None:
        """Finds out who calls, and lets the call in.

        Raises:
            EngineError: When it is refused.
        """
        desk, call, context = self._desk, self.call, self._context
        metadata = context.invocation_metadata() or ()
        for key, value in metadata:
            if key == "x-request-id" and isinstance(value, str) and _SANE_ID.fullmatch(value):
                call.request_id = value
            elif key == "authorization":
                self._authorization = value
        call.request_id = call.request_id or f"{_id_prefix}-{next(_ids):x}"
        call.account = account
        enter(call)
        context.set_trailing_metadata((("x-request-id", call.request_id),))
        if desk.tracing is not None:
            self._span = desk.tracing.start(self._method.path, call.request_id, metadata)
        guards = desk.admission.guards
        call.client = host_of(context.peer())
        if guards.tokens is not None:
            call.client = guards.tokens.name_of(self._authorization)
            self._version = guards.tokens.version
        elif guards.certificates and (name := name_in_certificate(context.auth_context())):
            call.client = name
        desk.admission.enter(self._size)
        context.add_done_callback(self._leave)

    def check(self) -> None:
        """Lets a stream go on whose token has not been withdrawn meanwhile.

        Raises:
            Unauthenticated: When it has.
        """
        tokens = self._desk.admission.guards.tokens
        if tokens is not None and tokens.version != self._version:
            tokens.name_of(self._authorization)
            self._version = tokens.version

    def answered(self, size: int) -> None:
        """The request gives way to an answer of `size` bytes, which is held until it has left."""
        self._desk.admission.hold(size - self._size)
        self._size = size

    def failed_inside(self, code: str, error: str) -> None:
        """A request of the stream was answered with an error."""
        self._desk.log.failed_in_stream(self._method.name, code, self.call.client, error)

    async def refuse(self) -> NoReturn:
        """Ends the call with what it is refused with.

        `abort` answers with nothing but a status, which is what lets clients' retry policies try again; setting code
        and details would send a header first.
        """
        assert self._refusal is not None
        await self._context.abort(*self._refusal)
        raise AssertionError("abort raises")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        seconds = time.perf_counter() - self._arrived
        call, log = self.call, self._desk.log
        if error is None:
            code, message = _OK, ""
            if log.verbose:
                log.answered(call.method, call.client, seconds)
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            self._refusal = refusal(domain_error(error, call.method), call.request_id)
            code, message = self._refusal.code, self._refusal.message
            log.failed(call.method, code.name, call.client, seconds, message)
            release_frames(error)
        else:
            code, message = self._code_of_the_end(error), "given up"
            log.failed(call.method, code.name, call.client, seconds, message)
        self._method.ended("OK" if code is _OK else code.name, seconds)
        if self._span is not None and self._desk.tracing is not None:
            self._desk.tracing.end(self._span, code.value[0], message, call.images)
        return self._refusal is not None

    def _leave(self, _: Any) -> None:
        self._desk.admission.leave(self._size)

    def _code_of_the_end(self, error: BaseException) -> grpc.StatusCode:
        if isinstance(error, grpc.aio.AbortError):
            return self._context.code() or grpc.StatusCode.UNKNOWN
        left = self._context.time_remaining()
        late = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED


@lru_cache(maxsize=4096)
def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer, for example ipv4:127.0.0.1:50051 or ipv6:%5B::1%5D:50051."""
    kind, _, address = peer.partition(":")
    return address.rpartition(":")[0] if kind.startswith("ip") else peer
