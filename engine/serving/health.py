"""The standard health service."""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from engine.transport import Server

NAME: str = health.SERVICE_NAME

_STATUS = health_pb2.HealthCheckResponse


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # grpc has no types
    """Health of the server as a whole, named "", and of each of its services.

    Its watchers don't hold up the end of the server.

    Args:
        services: Names of the services; none serves yet.
    """

    def __init__(self, services: Iterable[str]) -> None:
        super().__init__()
        self._server_status = dict.fromkeys(("", *services), _STATUS.NOT_SERVING)
        self._ending = asyncio.Event()

    async def set_serving(self) -> None:
        """Says SERVING for everything."""
        for name in list(self._server_status):
            await self.set(name, _STATUS.SERVING)

    def end_watches(self) -> None:
        """Ends every Watch stream, now and from now on."""
        self._ending.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status now."""
        await _refuse_garbage(request, context)
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Streams the status until the client or the server ends."""
        await _refuse_garbage(request, context)
        watching = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            ending.cancel()


def add_to_server(healths: Health, server: Server) -> None:
    """Adds the service, as the generated function does, but for bytes that are no message: they are told so."""
    encode = _STATUS.SerializeToString
    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(healths.Check, _read, encode),
        "Watch": grpc.unary_stream_rpc_method_handler(healths.Watch, _read, encode),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))


def _read(data: bytes) -> health_pb2.HealthCheckRequest | None:
    try:
        return health_pb2.HealthCheckRequest.FromString(data)
    except DecodeError:
        return None  # grpc.aio would tell the client of the exception, and the log of its trace


async def _refuse_garbage(request: Any, context: Any) -> None:
    if request is None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no HealthCheckRequest")
