"""One replica: the models of a server, and its service, for calls that Ray brings."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2

from engine.config import ServerConfig
from engine.errors import release_frames
from engine.models.repository import ModelRepository
from engine.proof.opening import open_proven
from engine.service.interceptor import host_of
from engine.service.latent_engine import LatentEngine
from engine.service.request_scope import Call
from engine.service.status import domain_error, rpc_status_of
from engine.telemetry.metrics import Metrics
from protos import dfcvae_pb2 as pb

REQUEST_ID = "x-request-id"
"""Metadata that every answer of a replica has, refusals too."""

REFUSAL = "grpc-status-details-bin"
"""Metadata that every refusal of a replica has; what Ray answers by itself has it not."""

SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
"""What grpc.health.v1 says."""


class RayCall(Call):
    """A call that Ray brought. Limits are Ray's here, and a deadline reaches the replica as its cancellation."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.client = host_of(context.peer())
        # Without one of the client's it is Ray's, which stands among what Ray sends back.
        given, made = dict(context.invocation_metadata()), dict(context.trailing_metadata())
        self.request_id: str = given.get(REQUEST_ID) or made.get("request_id", "")
        context.set_trailing_metadata([(REQUEST_ID, self.request_id)])

    def refuse(self, error: Exception, method: str) -> Empty:
        """Sets the status that the call ends with; gives what is to be returned beside it.

        To Ray it is an answer: an exception would have lost the status' details, and written a trace to the log.
        """
        status = rpc_status_of(domain_error(error, method), self.request_id)
        release_frames(error)
        self._context.set_code(status.code)
        self._context.set_details(status.message)
        self._context.set_trailing_metadata([*status.trailing])
        return Empty()


def _unary(name: str) -> Callable[["Replica", Any, Any], Coroutine[Any, Any, Any]]:
    async def answer(self: "Replica", request: Any, grpc_context: Any) -> Any:
        call = RayCall(grpc_context)
        try:
            return await getattr(self.engine, name)(request, call)
        except Exception as error:
            return call.refuse(error, name)

    answer.__name__ = name
    return answer


class Replica:
    """Serves the bundles of a configuration. Its methods are those of the services, with Ray's context as argument.

    Of the settings of a server those of models and batches hold here.

    Raises:
        StartupError: When a bundle can't be used on this node.
    """

    engine: LatentEngine

    async def __init__(self, config: ServerConfig) -> None:  # type: ignore[misc]  # Ray awaits it
        repository = ModelRepository(
            config, lambda bundle: open_proven(bundle, config.threads, config.device), Metrics().watch
        )
        await repository.open()
        await repository.warm_up()
        self.engine = LatentEngine(repository, config)
        if config.reload_every_s:
            self._reloads = asyncio.create_task(repository.watch_for_changes(config.reload_every_s))

    Encode, Decode, Edit = _unary("Encode"), _unary("Decode"), _unary("Edit")
    Interpolate, Sample, GetModel = _unary("Interpolate"), _unary("Sample"), _unary("GetModel")

    async def EditStream(  # noqa: N802
        self, requests: AsyncIterator[pb.EditStreamRequest], grpc_context: Any
    ) -> AsyncIterator[pb.EditStreamResponse | Empty]:
        """Edits one after the other, all in this replica."""
        call = RayCall(grpc_context)
        try:
            async for response in self.engine.EditStream(requests, call):
                yield response
        except Exception as error:
            yield call.refuse(error, "EditStream")

    async def Check(self, request: Any, grpc_context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        """Health's Check: a replica that Ray brings a call to is serving."""
        RayCall(grpc_context)
        return SERVING
