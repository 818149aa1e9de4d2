"""What Ray Serve's ingress is given: the services, with statuses as our own server has them.

Ray's ingress loads these functions into its process on each node, by name. It answers INTERNAL where a replica has
ended in the middle of a call, and sends a header before any status, so that neither this project's clients nor gRPC's
retry policies would send such a call again. Every call may be sent twice, so the ingress does so itself. A stream
ends as UNAVAILABLE.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from engine.ray_serve.replica import REFUSAL, SERVING
from protos.dfcvae_pb2_grpc import add_LatentEngineServicer_to_server

FUNCTIONS = tuple(f"{__name__}.{name}" for name in ("add_latent_engine", "add_health"))
"""Names of the functions, for `gRPCOptions`."""

_PAUSES_S = (0.1, 0.2, 0.3, 0.0)
"""After each try."""

_ENDED = "the replica ended before it answered; "

# As a context has them where gRPC's core counted them.
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def add_latent_engine(servicer: Any, server: Any) -> None:
    """Adds LatentEngine; the arguments are Ray's."""
    _add(add_LatentEngineServicer_to_server, servicer, server)


def add_health(servicer: Any, server: Any) -> None:
    """Adds grpc.health.v1: it is SERVING where a replica can be reached."""
    _add(add_HealthServicer_to_server, servicer, server)


def _add(add: Callable[[Any, Any], None], servicer: Any, server: Any) -> None:
    """Adds a service whose handlers, as Ray's server makes them, are wrapped; of Watch no replica is asked."""
    make = server.service_handler_factory

    def factory(*, service_method: str, streaming_type: Any) -> Any:
        handler = make(service_method=service_method, streaming_type=streaming_type)
        wrapped = {"unary_unary": answering(handler), "unary_stream": watch, "stream_stream": streaming(handler)}
        return wrapped.get(streaming_type.value, handler)

    server.service_handler_factory = factory
    try:
        add(servicer, server)
    finally:
        server.service_handler_factory = make


async def watch(request: Any, context: Any) -> AsyncIterator[bytes]:
    """Health's Watch: an ingress that answers is serving, if need be by replicas on other nodes."""
    yield SERVING.SerializeToString()
    await asyncio.Event().wait()


def answering(handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A handler that asks again where a replica has ended, and ends calls that failed with nothing but a status."""

    async def call(request: Any, context: Any) -> Any:
        for pause_s in _PAUSES_S:
            response = await handler(request, context)
            code, trailing, lost = _end(context)
            if code in (None, grpc.StatusCode.OK):
                return response
            if not lost:
                await context.abort(code, context.details(), trailing)
            context.set_code(grpc.StatusCode.OK)
            context.set_details("")
            await asyncio.sleep(pause_s)
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"{_ENDED}send again", trailing)

    return call


def streaming(handler: Callable[[Any, Any], AsyncIterator[bytes]]) -> Callable[[Any, Any], AsyncIterator[bytes]]:
    """A handler of streams, where one whose replica has ended says so."""

    async def stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for response in handler(requests, context):
            yield response
        _, trailing, lost = _end(context)
        if lost:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{_ENDED}open the stream again", trailing)

    return stream


def _end(context: Any) -> tuple[grpc.StatusCode | None, tuple[Any, ...], bool]:
    """How Ray's handler has ended a call: its status, its trailing metadata, and whether it lost the replica."""
    code, trailing = context.code(), tuple(context.trailing_metadata())
    code = _CODES.get(code, code)
    return code, trailing, code is grpc.StatusCode.INTERNAL and all(key != REFUSAL for key, _ in trailing)
