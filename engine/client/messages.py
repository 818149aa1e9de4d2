"""Requests made from numpy, and answers read into it; nothing here touches the network.

Shapes: N images of side S, latents of dimension D.

A batch is written into its request in place: protobuf copies a message that is handed to a constructor, and that
costs more than all the rest together. Pixels come back as read-only views of the received bytes, so they are copied
once; latents are small, and the caller's own.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, get_args

import numpy as np

from engine.arrays import Bytes, Floats
from engine.client import arguments
from engine.client.errors import ClientError
from engine.client.values import (
    Attribute,
    Distribution,
    Edited,
    FileFormat,
    Images,
    Model,
    Options,
    Posterior,
    Priority,
    Result,
    Source,
    StreamEdit,
    Walk,
)
from protos import dfcvae_pb2 as pb

_UINT32 = 2**32 - 1
_UINT64 = 2**64 - 1

_FORMATS: dict[str, Any] = {name: pb.ImageFormat.Value(f"IMAGE_FORMAT_{name}") for name in get_args(FileFormat)}
_PRIORITIES: dict[str, Any] = {name: pb.Priority.Value(f"PRIORITY_{name.upper()}") for name in get_args(Priority)}
_WALKS: dict[str, Any] = {name: pb.Walk.Value(f"WALK_{name.upper()}") for name in get_args(Walk)}
_RESULTS = {
    "images": pb.EDIT_RESULT_IMAGES,
    "latents": pb.EDIT_RESULT_LATENTS,
    "both": pb.EDIT_RESULT_IMAGES_AND_LATENTS,
}
_DISTRIBUTIONS: dict[Distribution, Any] = {
    "auto": pb.DISTRIBUTION_UNSPECIFIED,
    "standard": pb.DISTRIBUTION_STANDARD,
    "fitted": pb.DISTRIBUTION_FITTED,
    "mixture": pb.DISTRIBUTION_MIXTURE,
}
_DISTRIBUTION_NAMES = {number: name for name, number in _DISTRIBUTIONS.items()}


def address(request: Any, options: Options) -> None:
    """Fills in which model a request is for, and who goes first, where its method asks."""
    fields = request.DESCRIPTOR.fields_by_name
    if "model" in fields:
        request.model = options["model"]
    if "priority" in fields:
        request.priority = _PRIORITIES[options["priority"]]


def stream_request(step: StreamEdit, options: Options, number: int = 0) -> pb.EditStreamRequest:
    """One step of a stream; its number comes back with the answer."""
    if not isinstance(step, StreamEdit):
        raise TypeError(f"the steps of a stream must be StreamEdit, not {arguments.shown(step)}")
    request = pb.EditStreamRequest(id=number)
    address(request, options)
    _write_edit(request, step)
    return request


def stream_requests(
    steps: Iterable[StreamEdit], options: Options, failures: list[Exception]
) -> Iterator[pb.EditStreamRequest]:
    """The steps of a stream, up to one that fails: gRPC, which takes them, would only log that."""
    try:
        for number, step in enumerate(steps):
            yield stream_request(step, options, number)
    except Exception as failure:
        failures.append(failure)


async def async_stream_requests(
    steps: AsyncIterable[StreamEdit], options: Options, failures: list[Exception]
) -> AsyncIterator[pb.EditStreamRequest]:
    """As `stream_requests`, of steps that come asynchronously."""
    number = 0
    try:
        async for step in steps:
            yield stream_request(step, options, number)
            number += 1
    except Exception as failure:
        failures.append(failure)


def read_stream_answer(answer: pb.EditStreamResponse) -> Edited | ClientError:
    """What one step of a stream gave."""
    if answer.WhichOneof("outcome") == "error":
        return ClientError.of_answer(answer.error)
    edited = answer.edited
    form = edited.images.WhichOneof("images")
    return Edited(
        read_images(edited) if form == "raw" else None,
        read_files(edited) if form == "files" else None,
        read_latents(edited) if edited.HasField("latents") else None,
    )


def encode_request(images: Images) -> pb.EncodeRequest:
    """Images to posteriors."""
    request = pb.EncodeRequest()
    _write_images(request.images, "images", images)
    return request


def decode_request(latents: Floats, file_format: FileFormat | None = None, quality: int = 0) -> pb.DecodeRequest:
    """Latents to files of a format, or to pixels."""
    request = pb.DecodeRequest()
    _write_latents(request.latents, "latents", latents)
    if file_format is not None:
        _write_output(request.output, file_format, quality)
    return request


def edit_request(step: StreamEdit) -> pb.EditRequest:
    """Images or latents, moved."""
    request = pb.EditRequest()
    _write_edit(request, step)
    return request


def walk_request(start: Source, end: Source, steps: int, walk: Walk, result: Result) -> pb.InterpolateRequest:
    """Walks from images or latents to others."""
    request = pb.InterpolateRequest(
        steps=arguments.whole("steps", steps, 2, _UINT32),
        walk=_WALKS[arguments.choice("walk", walk, _WALKS)],
        result=_RESULTS[result],
    )
    _write_source(request.start, "start", start)
    _write_source(request.end, "end", end)
    return request


def sample_request(
    count: int,
    seed: int,
    temperature: float,
    distribution: Distribution,
    result: Result,
) -> pb.SampleRequest:
    """Draws."""
    return pb.SampleRequest(
        count=arguments.whole("count", count, 1, _UINT32),
        seed=arguments.whole("seed", seed, 0, _UINT64),
        temperature=arguments.between("temperature", temperature, 0, 10),
        distribution=_DISTRIBUTIONS[arguments.choice("distribution", distribution, _DISTRIBUTIONS)],
        result=_RESULTS[result],
    )


def write_conditions(request: Any, having: Iterable[str], lacking: Iterable[str]) -> None:
    """Adds what faces are to have and to lack."""
    request.having.extend(arguments.names("having", having))
    request.lacking.extend(arguments.names("lacking", lacking))


def _write_edit(request: Any, step: StreamEdit) -> None:
    """Fills in the fields that EditRequest and EditStreamRequest share."""
    if step.source is not None:
        _write_source(request, "source", step.source)
    for target, strength in arguments.moves(step.edits):
        if isinstance(target, str):
            request.edits.add(attribute=target, strength=strength)
        else:
            request.edits.add(direction=target, strength=strength)
    request.keep.extend(arguments.names("keep", step.keep))
    write_conditions(request, step.having, step.lacking)
    request.result = _RESULTS[arguments.choice("result", step.result, _RESULTS)]
    if step.file_format is not None:
        _write_output(request.output, step.file_format, step.quality)
    elif step.quality:
        raise ValueError(
            f"quality is of JPEG and WebP files; give a file_format as well, or no quality, not {step.quality}"
        )


def _write_source(message: Any, name: str, source: Any) -> None:
    if arguments.is_latents(source):
        _write_latents(message.latents, name, source)
    else:
        _write_images(message.images, name, source, arguments.SOURCES)


def _write_images(batch: pb.ImageBatch, name: str, images: Any, allowed: str = arguments.IMAGES) -> None:
    if isinstance(images, np.ndarray):
        pixels = arguments.pixels(name, images, allowed)
        batch.raw.count, batch.raw.height, batch.raw.width, _ = pixels.shape
        batch.raw.data = pixels.tobytes()
    else:
        batch.files.SetInParent()
        batch.files.files.extend(arguments.files(name, images, allowed))


def _write_latents(batch: pb.LatentBatch, name: str, latents: Any) -> None:
    batch.data = arguments.latents(name, latents)
    batch.count, batch.dim = latents.shape


def _write_output(output: pb.ImageOutput, file_format: FileFormat, quality: int) -> None:
    output.format = _FORMATS[arguments.choice("file_format", file_format, _FORMATS)]
    output.quality = arguments.whole("quality", quality, 0, 100)


def read_posterior(answer: pb.EncodeResponse) -> Posterior:
    """Parameters of the posteriors."""
    return Posterior(_floats(answer.mu), _floats(answer.log_var))


def read_images(answer: Any) -> Bytes:
    """Pixels, uint8 [N, S, S, 3], read-only."""
    raw = answer.images.raw
    return np.frombuffer(raw.data, np.uint8).reshape(raw.count, raw.height, raw.width, 3)


def read_files(answer: Any) -> list[bytes]:
    """Image files."""
    return list(answer.images.files.files)


def read_latents(answer: Any) -> Floats:
    """Latents, float32 [N, D]."""
    return _floats(answer.latents)


def read_both(answer: Any) -> tuple[Bytes, Floats]:
    """Pixels and latents."""
    return read_images(answer), read_latents(answer)


def read_model(answer: pb.GetModelResponse) -> Model:
    """What a server serves."""
    limits, made = answer.limits, answer.preprocessing
    return Model(
        name=answer.model,
        models=tuple(answer.models),
        fingerprint=answer.fingerprint,
        image_size=answer.image_size,
        latent_dim=answer.latent_dim,
        attributes=tuple(
            Attribute(one.name, one.positives, one.negatives, one.kind, one.can_condition) for one in answer.attributes
        ),
        distributions=tuple(filter(None, map(_DISTRIBUTION_NAMES.get, answer.distributions))),
        backend=answer.backend,
        precision=answer.precision,
        max_batch_size=answer.max_batch_size,
        max_delay_ms=answer.max_delay_ms,
        **{field.name: getattr(limits, field.name) for field in limits.DESCRIPTOR.fields},
        crop=made.crop or None,
        resize=made.resize,
        source=(made.source_width, made.source_height) if made.source_width else None,
        landmarks=tuple((round(point.x, 3), round(point.y, 3)) for point in made.landmarks) or None,
        versions=dict(sorted(answer.versions.items())),
    )


def _floats(batch: pb.LatentBatch) -> Floats:
    return np.frombuffer(batch.data, "<f4").reshape(batch.count, batch.dim).astype(np.float32)
