"""The gRPC service: what each method does with what the wire brought.

Shapes: N images of side S, latents of dimension D.
"""
# ruff: noqa: N802 - methods go by the names of their RPCs

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from engine.arrays import Floats
from engine.bundle import Preprocessing
from engine.config import ServerConfig
from engine.errors import InvalidField, InvalidRequest
from engine.latents import can_condition, linear, spherical
from engine.models.repository import ModelRepository
from engine.service.edit_stream import EditStream
from engine.service.request_scope import (
    DISTRIBUTIONS,
    Call,
    RequestScope,
    member,
    read_output,
    read_prior,
    write_latents,
)
from protos import dfcvae_pb2 as pb

SERVICE: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["LatentEngine"]
_MAX_TEMPERATURE = 10.0
_IS_ARC = {pb.WALK_UNSPECIFIED: False, pb.WALK_LINEAR: False, pb.WALK_SPHERICAL: True}

# Requests of one EditStream that are read ahead of its answers; fewer once they have as many images as one may have.
_REQUESTS_AHEAD = 64


class LatentEngine:
    """Serves the models of a repository, and tells clients of the limits in its configuration."""

    def __init__(self, repository: ModelRepository, config: ServerConfig) -> None:
        self._repository = repository
        self._config = config

    async def Encode(self, request: pb.EncodeRequest, call: Call) -> pb.EncodeResponse:
        """Images to mu and log_var."""
        with self._scope(request, call) as scope:
            images = scope.images(request.images)
            with scope.admit(len(images)) as context:
                mu, log_var = await scope.model.encode(images, context)
        response = pb.EncodeResponse()
        write_latents(response.mu, mu)
        write_latents(response.log_var, log_var)
        return response

    async def Decode(self, request: pb.DecodeRequest, call: Call) -> pb.DecodeResponse:
        """Latents to images."""
        with self._scope(request, call) as scope:
            output = read_output(request)
            latents = scope.latents(request.latents)
            with scope.admit(len(latents)) as context:
                images = await scope.model.decode(latents, context)
            return await scope.respond(pb.DecodeResponse(), output, images)

    async def Edit(self, request: pb.EditRequest, call: Call) -> pb.EditResponse:
        """Images or latents, moved along directions."""
        with self._scope(request, call) as scope:
            output = read_output(request)
            if not (request.edits or request.having or request.lacking):
                raise InvalidField(
                    "edits", "is empty, and so are having and lacking; name at least one attribute or direction"
                )
            move, conditions = scope.move(request.edits, request.keep), scope.conditions(request)
            source = scope.source(request)
            with scope.admit(len(source), decodes=bool(conditions)) as context:
                images, _, latents = await scope.model.edit(source, move, conditions, context, decode=output.images)
            return await scope.respond(pb.EditResponse(), output, images, latents)

    def EditStream(
        self, requests: AsyncIterator[pb.EditStreamRequest], call: Call
    ) -> AsyncIterator[pb.EditStreamResponse]:
        """Edits one after the other."""
        return EditStream(self._repository, call).answers(requests, _REQUESTS_AHEAD)

    async def Interpolate(self, request: pb.InterpolateRequest, call: Call) -> pb.InterpolateResponse:
        """Walks between images or latents."""
        with self._scope(request, call) as scope:
            output = read_output(request)
            arc = member(request.walk, _IS_ARC, "walk", "Walk")
            if request.steps < 2:
                raise InvalidField("steps", f"is {request.steps}; a walk has at least 2 points, its ends")
            start, end = scope.source(request.start, "start"), scope.source(request.end, "end")
            count = len(start)
            if count != len(end):
                raise InvalidRequest(f"start has {count} images or latents, end has {len(end)}; send pairs", "end")
            points = count * request.steps
            with scope.admit(points, "steps", "ask for", decodes=True) as context:
                ends = await scope.model.mu(start, context), await scope.model.mu(end, context)
                walk = partial(spherical, centre=scope.model.centre) if arc else linear
                latents = await scope.model.compute(points, partial(walk, *ends, request.steps), context)
                images = await scope.model.decode(latents, context) if output.images else None
            return await scope.respond(pb.InterpolateResponse(), output, images, latents)

    async def Sample(self, request: pb.SampleRequest, call: Call) -> pb.SampleResponse:
        """Draws latents and decodes them."""
        with self._scope(request, call) as scope:
            output = read_output(request)
            temperature = request.temperature if request.HasField("temperature") else 1.0
            if not 0 <= temperature <= _MAX_TEMPERATURE:
                raise InvalidField("temperature", f"is {temperature:g}; it goes from 0 to {_MAX_TEMPERATURE:g}")
            prior = read_prior(request, scope.model.priors)
            conditions = scope.conditions(request)
            with scope.admit(request.count, "count", "ask for", decodes=True) as context:

                def draw() -> Floats:
                    return conditions.project(prior.draw(request.count, request.seed, temperature))

                latents = await scope.model.compute(request.count * (1 + len(conditions)), draw, context)
                images = await scope.model.decode(latents, context) if output.images else None
            return await scope.respond(pb.SampleResponse(), output, images, latents)

    async def GetModel(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        """What is served."""
        model = self._repository.get(request.model)
        manifest, directions = model.bundle.manifest, model.bundle.directions
        config = self._config
        conditional = [can_condition(directions, name) for name in directions.names]
        columns = (directions.names, directions.positives, directions.negatives, directions.kinds, conditional)
        return pb.GetModelResponse(
            image_size=manifest.image_size,
            latent_dim=manifest.latent_dim,
            attributes=[
                pb.Attribute(name=name, positives=positives, negatives=negatives, kind=kind, can_condition=takes)
                for name, positives, negatives, kind, takes in zip(*columns, strict=True)
            ],
            backend=manifest.backend,
            precision=manifest.precision,
            max_batch_size=manifest.max_batch_size,
            limits=pb.Limits(
                max_images_per_request=model.max_images,
                max_message_bytes=config.max_message_bytes,
                max_queued_images=config.max_queue,
                max_pixels_per_file=config.max_pixels_per_file,
                max_concurrent_streams=config.max_concurrent_streams,
                max_images_per_second=config.max_images_per_second,
                max_requests_ahead=_REQUESTS_AHEAD,
            ),
            preprocessing=_preprocessing(manifest.preprocessing),
            versions=manifest.versions,
            model=model.name,
            models=self._repository.names,
            fingerprint=model.fingerprint,
            distributions=[DISTRIBUTIONS[name] for name in model.priors],
            max_delay_ms=config.max_delay_ms,
        )

    def _scope(self, request: Any, call: Call) -> RequestScope:
        return RequestScope(self._repository, call, request, request.model)


def _preprocessing(made: Preprocessing) -> pb.Preprocessing:
    width, height = made.source or (0, 0)
    landmarks = [pb.Point(x=x, y=y) for x, y in made.landmarks or ()]
    return pb.Preprocessing(
        crop=made.crop or 0, resize=made.resize, source_width=width, source_height=height, landmarks=landmarks
    )
