"""The gRPC service: translates protobuf to numpy and back, and nothing else.

Shapes: N images of side S, latents of dimension D.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends import Backend, warm_up
from engine.batcher import Batcher, Device
from engine.bundle import Bundle
from engine.errors import InvalidRequest
from engine.images import DEFAULT_QUALITY, MAX_FILE_PIXELS, Codec, from_raw
from engine.latents import edit
from protos import dfcvae_pb2 as pb
from protos import dfcvae_pb2_grpc

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["LatentEngine"].full_name
MAX_MESSAGE_BYTES = 64 * 2**20

_MAX_IMAGES_PER_REQUEST = 1024
_MAX_EDITS = 1024
_FILE_FORMATS = {
    pb.IMAGE_FORMAT_JPEG: "JPEG",
    pb.IMAGE_FORMAT_PNG: "PNG",
    pb.IMAGE_FORMAT_WEBP: "WEBP",
}
_RAW_FORMATS = (pb.IMAGE_FORMAT_UNSPECIFIED, pb.IMAGE_FORMAT_RAW)


@dataclass(frozen=True)
class Settings:
    """What an operator may choose about the service.

    Attributes:
        max_delay: How long a batch may wait to fill while the device is free, seconds.
        max_queue: Images that may wait for each of encoder and decoder.
        codec_threads: Image files that are decoded or encoded at once.
    """

    max_delay: float = 0.0
    max_queue: int = 4096
    codec_threads: int = 2


class LatentEngine(dfcvae_pb2_grpc.LatentEngineServicer):
    """Serves one bundle. Construct it inside a running event loop; `close` it there.

    Args:
        bundle: What is served.
        backend: The bundle's graphs, opened.
        settings: The operator's choices.
    """

    def __init__(self, bundle: Bundle, backend: Backend, settings: Settings) -> None:
        manifest = bundle.manifest
        self._manifest = manifest
        self._directions = bundle.directions
        self._backend = backend
        self._settings = settings
        self._max_images = _max_images_per_request(manifest.image_size, manifest.latent_dim, settings.max_queue)
        self._codec = Codec(manifest.image_size, manifest.preprocessing, settings.codec_threads)
        self._device = Device()
        self._encoder = self._batcher(backend.encode, (manifest.image_size, manifest.image_size, 3), np.uint8)
        self._decoder = self._batcher(lambda latents: (backend.decode(latents),), (manifest.latent_dim,), np.float32)

    def _batcher(
        self, run: Callable[..., tuple[Any, ...]], item_shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> Batcher:
        return Batcher(
            run,
            item_shape,
            dtype,
            self._device,
            max_batch_size=self._manifest.max_batch_size,
            max_delay=self._settings.max_delay,
            max_queue=self._settings.max_queue,
        )

    async def warm_up(self) -> None:
        """Runs both graphs once per batch size; requests that arrive meanwhile wait."""
        async with self._device.free:
            await self._device.run(warm_up, self._backend, self._manifest)

    async def close(self) -> None:
        """Answers what was accepted, then ends the threads."""
        await self._encoder.close()
        await self._decoder.close()
        self._device.close()
        self._codec.close()

    async def Encode(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:  # noqa: N802
        """Images to mu and log_var."""
        images = await self._read_images(request.images)
        mu, log_var = await self._encoder.submit(images, _deadline(context))
        return pb.EncodeResponse(mu=_write_latents(mu), log_var=_write_latents(log_var))

    async def Decode(self, request: pb.DecodeRequest, context: Any) -> pb.DecodeResponse:  # noqa: N802
        """Latents to images."""
        _check_output(request.output)
        latents = self._read_latents(request.latents)
        (images,) = await self._decoder.submit(latents, _deadline(context))
        return pb.DecodeResponse(images=await self._write_images(images, request.output))

    async def Edit(self, request: pb.EditRequest, context: Any) -> pb.EditResponse:  # noqa: N802
        """Images or latents, moved along directions."""
        deadline = _deadline(context)
        want_images, want_latents = _wanted(request)
        moves, keep = self._read_edits(request)
        if request.WhichOneof("source") == "images":
            images = await self._read_images(request.images, decoding_follows=want_images)
            latents, _ = await self._encoder.submit(images, deadline)
        elif request.WhichOneof("source") == "latents":
            latents = self._read_latents(request.latents)
        else:
            raise InvalidRequest("the request has no source; set images or latents")
        edited = edit(latents, moves, keep)
        response = pb.EditResponse()
        if want_latents:
            response.latents.CopyFrom(_write_latents(edited))
        if want_images:
            (images,) = await self._decoder.submit(edited, deadline)
            response.images.CopyFrom(await self._write_images(images, request.output))
        return response

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        """What is served."""
        manifest, directions = self._manifest, self._directions
        counts = zip(directions.names, directions.positives, directions.negatives, strict=True)
        return pb.GetModelResponse(
            image_size=manifest.image_size,
            latent_dim=manifest.latent_dim,
            attributes=[
                pb.Attribute(name=name, positives=positives, negatives=negatives)
                for name, positives, negatives in counts
            ],
            backend=manifest.backend,
            precision=manifest.precision,
            max_batch_size=manifest.max_batch_size,
            limits=pb.Limits(
                max_images_per_request=self._max_images,
                max_message_bytes=MAX_MESSAGE_BYTES,
                max_queued_images=self._settings.max_queue,
                max_pixels_per_file=MAX_FILE_PIXELS,
            ),
            preprocessing=pb.Preprocessing(crop=manifest.preprocessing.crop or 0, resize=manifest.preprocessing.resize),
            versions=manifest.versions,
        )

    async def _read_images(self, batch: pb.ImageBatch, decoding_follows: bool = False) -> Bytes:
        """Images of a request, uint8 [N, S, S, 3]; refused before any work when the queues have no room."""
        form = batch.WhichOneof("images")
        if form is None:
            raise InvalidRequest("the request has no images; set images.raw or images.files")
        count = batch.raw.count if form == "raw" else len(batch.files.files)
        self._check_count(count)
        if form == "raw":
            raw = batch.raw
            images = from_raw(raw.data, raw.count, raw.height, raw.width, self._manifest.image_size)
        self._encoder.require_room(count)
        if decoding_follows:
            self._decoder.require_room(count)
        return images if form == "raw" else await self._codec.decode(batch.files.files)

    def _read_latents(self, batch: pb.LatentBatch) -> Floats:
        """Latents of a request, float32 [N, D]."""
        if batch.count < 1:
            raise InvalidRequest("latents.count is 0; send at least one latent")
        self._check_count(batch.count)
        if batch.dim != self._manifest.latent_dim:
            raise InvalidRequest(
                f"latents.dim is {batch.dim}; this model's latents have {self._manifest.latent_dim} values"
            )
        data = batch.data
        expected = batch.count * batch.dim * 4
        if len(data) != expected:
            raise InvalidRequest(
                f"latents.data has {len(data)} bytes; {batch.count} latents of {batch.dim} float32 are {expected}"
            )
        latents = _floats(data).reshape(batch.count, batch.dim)
        finite = np.isfinite(latents).all(axis=1)
        if not finite.all():
            raise InvalidRequest(f"latents[{int(np.argmin(finite))}] has values that are NaN or infinite")
        return latents

    def _read_edits(self, request: pb.EditRequest) -> tuple[list[tuple[Floats, float]], Floats | None]:
        """Moves (direction [D], strength) and kept directions [K, D]."""
        if not request.edits:
            raise InvalidRequest("edits is empty; name at least one attribute or direction")
        if len(request.edits) > _MAX_EDITS:
            raise InvalidRequest(f"the request has {len(request.edits)} edits; at most {_MAX_EDITS} are accepted")
        moves = [self._read_edit(index, one) for index, one in enumerate(request.edits)]
        kept = {name: self._directions[name] for name in request.keep}
        for index, one in enumerate(request.edits):
            if one.attribute in kept:
                raise InvalidRequest(
                    f"edits[{index}]: {one.attribute!r} is both edited and kept; take it out of one of them"
                )
        return moves, np.stack(list(kept.values())) if kept else None

    def _read_edit(self, index: int, one: pb.Edit) -> tuple[Floats, float]:
        if not np.isfinite(one.strength):
            raise InvalidRequest(f"edits[{index}].strength is {one.strength}; it must be a finite number")
        target = one.WhichOneof("target")
        if target == "attribute":
            return self._directions[one.attribute], one.strength
        if target is None:
            raise InvalidRequest(f"edits[{index}] has no target; set attribute or direction")
        dim = self._manifest.latent_dim
        if len(one.direction) != dim * 4:
            raise InvalidRequest(
                f"edits[{index}].direction has {len(one.direction)} bytes; {dim} float32 are {dim * 4}"
            )
        direction = _floats(one.direction)
        if not np.isfinite(direction).all():
            raise InvalidRequest(f"edits[{index}].direction has values that are NaN or infinite")
        return direction, one.strength

    def _check_count(self, count: int) -> None:
        if count > self._max_images:
            raise InvalidRequest(
                f"the request has {count} images or latents; at most {self._max_images} are accepted, "
                "send several requests"
            )

    async def _write_images(self, images: Bytes, output: pb.ImageOutput) -> pb.ImageBatch:
        if output.format in _RAW_FORMATS:
            count, height, width, _ = images.shape
            raw = pb.RawImages(count=count, height=height, width=width, data=images.tobytes())
            return pb.ImageBatch(raw=raw)
        files = await self._codec.encode(images, _FILE_FORMATS[output.format], output.quality or DEFAULT_QUALITY)
        return pb.ImageBatch(files=pb.EncodedImages(files=files))


def _max_images_per_request(image_size: int, latent_dim: int, max_queue: int) -> int:
    # The largest answer, images as PNG of noise plus latents, must fit into one message.
    bytes_per_image = image_size * image_size * 3 + 8 * latent_dim + 1024
    return max(1, min(_MAX_IMAGES_PER_REQUEST, max_queue, MAX_MESSAGE_BYTES // bytes_per_image))


def _deadline(context: Any) -> float | None:
    """The call's deadline on the event loop's clock."""
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + float(remaining)


def _wanted(request: pb.EditRequest) -> tuple[bool, bool]:
    """Whether images and whether latents are to be returned."""
    if request.result not in pb.EditResult.values():
        raise InvalidRequest(f"result is {request.result}, which is none of EditResult's values")
    if request.result == pb.EDIT_RESULT_LATENTS:
        if request.HasField("output"):
            raise InvalidRequest("output is set, but only latents are asked for; ask for images, or leave it out")
        return False, True
    _check_output(request.output)
    return True, request.result == pb.EDIT_RESULT_IMAGES_AND_LATENTS


def _check_output(output: pb.ImageOutput) -> None:
    if output.format not in _RAW_FORMATS and output.format not in _FILE_FORMATS:
        raise InvalidRequest(f"output.format is {output.format}, which is none of ImageFormat's values")
    if output.quality > 100:
        raise InvalidRequest(f"output.quality is {output.quality}; it goes from 1 to 100")
    if output.quality and output.format not in (pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_WEBP):
        raise InvalidRequest("output.quality is for JPEG and WebP; choose one of them, or leave it out")


def _floats(data: bytes) -> Floats:
    # Native order without a copy where native is little-endian.
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def _write_latents(latents: Floats) -> pb.LatentBatch:
    count, dim = latents.shape
    return pb.LatentBatch(count=count, dim=dim, data=latents.astype("<f4", copy=False).tobytes())
