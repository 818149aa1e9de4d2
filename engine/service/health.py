"""The standard health service, grpc.health.v1."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from engine.transport import Server

NAME: str = health.SERVICE_NAME
FILE: FileDescriptor = health_pb2.DESCRIPTOR

_Answer = health_pb2.HealthCheckResponse


class Health:
    """Health of the server as a whole, named "", and of each of its services; at first none serves.

    Construct it inside a running event loop. Each watcher is told by itself: one that doesn't read holds up neither
    the others nor whoever sets the status.

    Args:
        services: Names of the services.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._names = frozenset(("", *services))
        self._status = _Answer.NOT_SERVING
        self._ending = False
        self._changed = asyncio.Event()

    def set_serving(self) -> None:
        """Says SERVING for everything."""
        self._status = _Answer.SERVING
        self._wake()

    def set_not_serving(self) -> None:
        """Says NOT_SERVING for everything."""
        self._status = _Answer.NOT_SERVING
        self._wake()

    def end_watches(self) -> None:
        """Ends every Watch stream that has told the status, now and from now on."""
        self._ending = True
        self._wake()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status now."""
        await _refuse_garbage(request, context)
        status = self._status_of(request.service)
        if status == _Answer.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the server has no such service")
        return _Answer(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Streams the status, now and whenever it changes, until the client or the server ends."""
        await _refuse_garbage(request, context)
        told = None
        while True:
            changed, status = self._changed, self._status_of(request.service)
            if status != told:
                told = status
                yield _Answer(status=status)
            elif self._ending:
                return
            else:
                await changed.wait()

    def _status_of(self, service: str) -> int:
        return int(self._status if service in self._names else _Answer.SERVICE_UNKNOWN)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def add_to_server(healths: Health, server: Server) -> None:
    """Adds the service to a server; bytes that are no message are told so."""
    encode = _Answer.SerializeToString
    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(healths.Check, _read, encode),
        "Watch": grpc.unary_stream_rpc_method_handler(healths.Watch, _read, encode),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))


def _read(data: bytes) -> health_pb2.HealthCheckRequest | None:
    try:
        return health_pb2.HealthCheckRequest.FromString(data)
    except DecodeError:
        return None  # the transport would tell the client of a failure, and the log of its trace


async def _refuse_garbage(request: Any, context: Any) -> None:
    if request is None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no HealthCheckRequest")
