"""One request: its fields as numpy and back, and what must be done for every request, which no method gets past.

A model computes for a `RequestContext`, and only `RequestScope.admit` gives one: when the model is leased, the deadline
read, the size checked, the client's rate spent, and the room held. Every refusal names the field, the value and the
mend.

Shapes: N images of side S, latents of dimension D.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import Message

from engine.arrays import Bytes, Floats
from engine.batching.batcher import RequestContext
from engine.errors import InvalidField, InvalidRequest, Overloaded
from engine.images import DEFAULT_QUALITY, FILE_FORMATS, EncodedFiles
from engine.latents import FITTED, MIXTURE, Conditions, Move, Prior
from engine.models.model import STANDARD, Images, Source
from engine.models.repository import ModelRepository
from protos import dfcvae_pb2 as pb

T = TypeVar("T")
_Response = TypeVar("_Response", bound=Message)

_MAX_EDITS = 1024

# Whether images come back, and whether latents do.
_RESULTS = {
    pb.EDIT_RESULT_UNSPECIFIED: (True, False),
    pb.EDIT_RESULT_IMAGES: (True, False),
    pb.EDIT_RESULT_LATENTS: (False, True),
    pb.EDIT_RESULT_IMAGES_AND_LATENTS: (True, True),
}
_FORMATS: dict[int, str | None] = {
    pb.IMAGE_FORMAT_UNSPECIFIED: None,
    pb.IMAGE_FORMAT_RAW: None,
    **{pb.ImageFormat.Value(f"IMAGE_FORMAT_{name}"): name for name in FILE_FORMATS},
}
DISTRIBUTIONS = {
    STANDARD: pb.DISTRIBUTION_STANDARD,
    FITTED: pb.DISTRIBUTION_FITTED,
    MIXTURE: pb.DISTRIBUTION_MIXTURE,
}
"""What a model's priors are on the wire."""

_PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: 0,
    pb.PRIORITY_NORMAL: 0,
    pb.PRIORITY_BACKGROUND: -1,
    pb.PRIORITY_INTERACTIVE: 1,
}


class Call:
    """The call that a client makes: this one has no deadline and no limits, and nobody counts."""

    client = ""

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None without one."""
        return None

    @contextmanager
    def spend(self, images: int) -> Iterator[None]:
        """Takes images and latents out of the client's share, for work on them; what there is no room for is free.

        Raises:
            RateLimited: When the client has used up its share.
        """
        yield

    def hold(self, size: int) -> None:
        """It holds `size` bytes more until its end, or fewer where that is negative."""

    def replied(self, code: str, error: str) -> None:
        """A request of a stream was answered: "OK", or the gRPC status of the error in its answer and the sentence."""


class OutputSpec(NamedTuple):
    """What is to come back."""

    images: bool
    latents: bool
    file_format: str | None  # of the images, one of `engine.images.FILE_FORMATS`; None: raw
    quality: int  # of JPEG and WebP, 1 to 100


class RequestScope:
    """A request while it is worked on, as a context that leases its model, by default the first.

    Methods that read fields raise InvalidRequest, or UnknownAttribute for a name.

    Attributes:
        model: Stays open until the scope's end.

    Raises:
        InvalidRequest: When the priority isn't known.
        UnknownModel: When there is no such model.
    """

    def __init__(self, repository: ModelRepository, call: Call, request: Any, model: str) -> None:
        remaining = call.time_remaining()
        deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
        self._call = call
        priority = member(request.priority, _PRIORITIES, "priority", "Priority")
        self._context = RequestContext(deadline, call.client, priority)
        self._one_of_several = len(repository.names) > 1
        self.model = repository.get(model)
        self._manifest, self._directions = self.model.bundle.manifest, self.model.bundle.directions
        self._lease = self.model.lease()

    def __enter__(self) -> "RequestScope":
        self._lease.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._lease.__exit__(kind, error, trace)
        if self._one_of_several and isinstance(error, Overloaded):
            error.recheck = None  # whoever looks at calls before their messages can't tell for which model they are

    def source(self, message: Any, field: str = "") -> Source:
        """What stands in `images` or `latents` of a message, which is that `field` of the request, or all of it."""
        name, at = message.WhichOneof("source"), f"{field}." if field else ""
        if name == "images":
            return self.images(message.images, f"{at}images")
        if name == "latents":
            return self.latents(message.latents, f"{at}latents")
        raise InvalidRequest(
            f"{field or 'the request'} has no source; set {at}images or {at}latents", field or "source"
        )

    def images(self, batch: pb.ImageBatch, field: str = "images") -> Images:
        """Images of a request: pixels, uint8 [N, S, S, 3], or files, not yet decoded."""
        form = batch.WhichOneof("images")
        if form == "raw":
            return self._pixels(batch.raw, f"{field}.raw")
        if form is None:
            raise InvalidField(field, f"has no images; set {field}.raw or {field}.files")
        files = batch.files.files
        if not files:
            raise InvalidField(f"{field}.files", "is empty; send at least one image")
        self._check_count(len(files), f"{field}.files")
        return EncodedFiles(files, f"{field}.files")

    def _pixels(self, raw: pb.RawImages, field: str) -> Bytes:
        count, height, width, data = raw.count, raw.height, raw.width, raw.data
        size = self._manifest.image_size
        self._check_count(count, f"{field}.count")
        if (height, width) != (size, size):
            raise InvalidRequest(
                f"raw images must be {size}x{size} for this model, not {height}x{width}; "
                "resize them, or send them as files for the server to crop and resize",
                field,
            )
        _check_bytes(data, count * height * width * 3, f"{field}.data", f"{count} images of {height}x{width} RGB")
        return np.frombuffer(data, np.uint8).reshape(count, height, width, 3)

    def latents(self, batch: pb.LatentBatch, field: str = "latents") -> Floats:
        """Latents of a request, float32 [N, D]."""
        count, dim, data = batch.count, batch.dim, batch.data
        self._check_count(count, f"{field}.count")
        if dim != self._manifest.latent_dim:
            raise InvalidField(
                f"{field}.dim", f"is {dim}; this model's latents have {self._manifest.latent_dim} values"
            )
        _check_bytes(data, count * dim * 4, f"{field}.data", f"{count} latents of {dim} float32")
        latents = _floats(data).reshape(count, dim)
        finite = np.isfinite(latents).all(axis=1)
        if not finite.all():
            index = int(np.argmin(finite))
            raise InvalidField(f"{field}.data", f": latent {index} has values that are NaN or infinite")
        return latents

    def move(self, edits: Sequence[pb.Edit], keep: Sequence[str]) -> Move:
        """The edits of a request, summed up."""
        if len(edits) > _MAX_EDITS:
            raise InvalidField("edits", f"has {len(edits)} entries; at most {_MAX_EDITS} are accepted")
        if len(keep) > _MAX_EDITS:
            raise InvalidField("keep", f"has {len(keep)} names; at most {_MAX_EDITS} are accepted")
        moves = [(self._target(index, one), one.strength) for index, one in enumerate(edits)]
        return self._directions.move(moves, keep)

    def _target(self, index: int, one: pb.Edit) -> str | Floats:
        target = one.WhichOneof("target")
        field = f"edits[{index}]"
        if target == "attribute":
            return one.attribute
        if target is None:
            raise InvalidField(field, "has no target; set attribute or direction")
        dim = self._manifest.latent_dim
        _check_bytes(one.direction, dim * 4, f"{field}.direction", f"{dim} float32")
        return _floats(one.direction)

    def conditions(self, request: Any) -> Conditions:
        """What a request wants faces to have and to lack."""
        if not (request.having or request.lacking):
            return Conditions()
        return Conditions.of(self._directions, request.having, request.lacking, getattr(request, "keep", ()))

    @contextmanager
    def admit(
        self, count: int, field: str = "source", verb: str = "send", *, decodes: bool = False
    ) -> Iterator[RequestContext]:
        """To be entered around all work on so many images or latents; gives the context that a model computes for.

        `field` says how many, and `verb` what the request does with them. With `decodes`, room is held for decoding
        what is computed first.

        Raises:
            InvalidRequest: When they are none, or more than a request may have.
            RateLimited: When the client has used up its share.
            Overloaded: When there is no room for decoding them.
        """
        self._check_count(count, field, verb)
        client = self._context.client
        with self._call.spend(count), self.model.room(count, client) if decodes else nullcontext() as room:
            yield self._context._replace(room=room)

    def _check_count(self, count: int, field: str, verb: str = "send") -> None:
        if count < 1:
            raise InvalidField(field, f": {count} images or latents; {verb} at least one")
        if count > (most := self.model.max_images):
            raise InvalidField(
                field, f": {count} images or latents; a request may {verb} at most {most}: send several requests"
            )

    async def respond(
        self, message: _Response, output: OutputSpec, images: Bytes | None, latents: Floats | None = None
    ) -> _Response:
        """Puts into an empty response what is wanted of images, uint8 [N, S, S, 3], and latents, float32 [N, D]."""
        fields: Any = message
        if output.latents and latents is not None:
            write_latents(fields.latents, latents)
        if images is None:
            return message
        if output.file_format is None:
            write_pixels(fields.images.raw, images)
            return message
        files = await self.model.codec.encode(images, output.file_format, output.quality, self._context.client)
        fields.images.files.files.extend(files)
        return message


def count_sent(message: Any) -> int:
    """Images or latents that a message with a source says that it has, true or not."""
    if message.WhichOneof("source") == "latents":
        return int(message.latents.count)
    images = message.images
    return int(images.raw.count) if images.WhichOneof("images") == "raw" else len(images.files.files)


def member(value: int, known: Mapping[Any, T], field: str, kind: str) -> T:
    """What the value of an enumeration stands for, which `field` of a request has."""
    if value not in known:
        raise InvalidField(field, f"is {value}, which is none of {kind}'s values")
    return known[value]


def read_prior(request: Any, known: Mapping[str, Prior]) -> Prior:
    """What a request with `distribution` draws from, of what its model has by name, the default first."""
    names = {pb.DISTRIBUTION_UNSPECIFIED: next(iter(known)), **{value: name for name, value in DISTRIBUTIONS.items()}}
    name = member(request.distribution, names, "distribution", "Distribution")
    if name not in known:
        raise InvalidField(
            "distribution",
            f": this bundle has no {name} one, only {', '.join(known)}; take one of these, or build the bundle again",
        )
    return known[name]


def read_output(request: Any) -> OutputSpec:
    """What a request with `output`, and perhaps with `result`, wants back."""
    images, latents = member(getattr(request, "result", pb.EDIT_RESULT_IMAGES), _RESULTS, "result", "EditResult")
    if not images and request.HasField("output"):
        raise InvalidField("output", "is set, but only latents are asked for; ask for images, or leave it out")
    file_format = member(request.output.format, _FORMATS, "output.format", "ImageFormat")
    quality = request.output.quality
    if quality > 100:
        raise InvalidField("output.quality", f"is {quality}; it goes from 1 to 100")
    if quality and file_format not in ("JPEG", "WEBP"):
        raise InvalidField("output.quality", "is for JPEG and WebP; choose one of them, or leave it out")
    return OutputSpec(images, latents, file_format, quality or DEFAULT_QUALITY)


def write_pixels(raw: pb.RawImages, pixels: Bytes) -> None:
    """Puts images, uint8 [N, S, S, 3], into a message."""
    raw.count, raw.height, raw.width, _ = pixels.shape
    raw.data = pixels.tobytes()


def write_latents(batch: pb.LatentBatch, latents: Floats) -> None:
    """Puts latents, float32 [N, D], into a message."""
    batch.count, batch.dim = latents.shape
    batch.data = latents.astype("<f4", copy=False).tobytes()


def _check_bytes(data: bytes, expected: int, field: str, what: str) -> None:
    if len(data) != expected:
        raise InvalidField(field, f"has {len(data)} bytes; {what} are {expected}")


def _floats(data: bytes) -> Floats:
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
