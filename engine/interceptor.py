"""What every call passes: where domain errors become gRPC statuses, and where calls are counted."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from engine.errors import EngineError, ShuttingDown

logger = logging.getLogger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Answers domain errors with status and message, all others with a fixed text and a trace in the log.

    Streams (health, reflection) pass through. Construct it inside a running event loop.
    """

    def __init__(self) -> None:
        self._in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, timeout: float) -> None:
        """Refuses new calls with UNAVAILABLE, and returns when the accepted ones are answered.

        gRPC's own shutdown cancels calls that have arrived but weren't taken up yet; a client that is refused
        by name knows that it may send the request elsewhere.

        Args:
            timeout: When to give up waiting, seconds.
        """
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except asyncio.TimeoutError:
            logger.warning("%d calls are cut off after %g s of grace", self._in_flight, timeout)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wraps the handler of a unary call."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler.unary_unary:
            return handler
        method = handler_call_details.method

        async def call(request: bytes, context: Any) -> Any:
            try:
                return await self._answer(handler, request, context, method)
            except EngineError as error:
                status, message = grpc.StatusCode[error.status], str(error)
            except DecodeError:
                status = grpc.StatusCode.INVALID_ARGUMENT
                message = "the request is not a message of this method; use the service's own .proto"
            except grpc.aio.AbortError:
                raise
            except Exception:
                logger.exception("%s failed", method)
                status = grpc.StatusCode.INTERNAL
                message = "the server failed on this request; its log has the reason"
            await context.abort(status, message)

        # Requests are deserialised in `_answer`, so that bytes that are no message get a clear answer too.
        return grpc.unary_unary_rpc_method_handler(call, response_serializer=handler.response_serializer)

    async def _answer(self, handler: Any, request: bytes, context: Any, method: str) -> Any:
        if self._draining and not method.startswith("/grpc.health."):
            raise ShuttingDown("the server is shutting down; send the request to another one")
        self._in_flight += 1
        self._idle.clear()
        try:
            return await handler.unary_unary(handler.request_deserializer(request), context)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
