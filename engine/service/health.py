"""The standard health service, grpc.health.v1."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from engine.transport import Server

FILE: FileDescriptor = health_pb2.DESCRIPTOR

_Answer = health_pb2.HealthCheckResponse


class Health:
    """Health of the server as a whole, named "", and of each of its services; at first none serves.

    Construct it inside a running event loop. Each watcher is told by itself: one that doesn't read holds up neither the
    others nor whoever sets the status.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._names = frozenset(("", *services))
        self._status = _Answer.NOT_SERVING
        self._ending = False
        self._changed = asyncio.Event()

    def set(self, *, serving: bool) -> None:
        """Says SERVING or NOT_SERVING for everything."""
        self._status = _Answer.SERVING if serving else _Answer.NOT_SERVING
        self._wake()

    def end_watches(self) -> None:
        """Ends every Watch stream that has told the status, now and from now on."""
        self._ending = True
        self._wake()

    async def check(self, request: bytes, context: Any) -> bytes:
        """The status now."""
        status = self._status_of(await _service_in(request, context))
        if status == _Answer.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the server has no such service")
        return _message(status)

    async def watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Streams the status, now and whenever it changes, until the client or the server ends."""
        service, told = await _service_in(request, context), None
        while True:
            changed, status = self._changed, self._status_of(service)
            if status != told:
                told = status
                yield _message(status)
            elif self._ending:
                return
            else:
                await changed.wait()

    def _status_of(self, service: str) -> int:
        return int(self._status if service in self._names else _Answer.SERVICE_UNKNOWN)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def add_to_server(self, server: Server) -> None:
        """Adds the service to a server."""
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }
        server.add_service(health.SERVICE_NAME, handlers)


def _message(status: int) -> bytes:
    data: bytes = _Answer(status=status).SerializeToString()
    return data


async def _service_in(request: bytes, context: Any) -> str:
    """The service that is asked for; bytes that are no message end the call."""
    try:
        return str(health_pb2.HealthCheckRequest.FromString(request).service)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no HealthCheckRequest")
        raise
