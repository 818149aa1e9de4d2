"""The standard health service."""

import asyncio
from collections.abc import Iterable
from typing import Any

from grpc_health.v1 import health, health_pb2

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

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Streams the status until the client or the server ends."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            ending.cancel()
