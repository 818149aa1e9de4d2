"""The one place where domain errors become gRPC statuses."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from engine.errors import EngineError

logger = logging.getLogger(__name__)


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Answers domain errors with status and message, all others with a fixed text and a trace in the log."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Wraps the handler of a unary call; streams (health, reflection) pass through."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler.unary_unary:
            return handler
        method = handler_call_details.method

        async def call(request: bytes, context: Any) -> Any:
            try:
                return await handler.unary_unary(handler.request_deserializer(request), context)
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

        # Requests are deserialised in `call`, so that bytes that are no message get a clear answer too.
        return grpc.unary_unary_rpc_method_handler(call, response_serializer=handler.response_serializer)
