"""Fields of the wire's messages to numpy and back; every refusal names the field, the value and the mend.

Shapes: N images of side S, latents of dimension D.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.arrays import Bytes, Floats
from engine.bundle import Manifest
from engine.errors import InvalidField, InvalidRequest
from engine.images import FILE_FORMATS, EncodedFiles
from engine.latents import FITTED, MIXTURE, Directions, Move, Prior, Wishes
from engine.models.model import STANDARD, Images, Source
from protos import dfcvae_pb2 as pb

_MAX_EDITS = 1024

_RESULTS = frozenset(pb.EditResult.values())
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


class OutputSpec(NamedTuple):
    """What is to come back.

    Attributes:
        images: Whether images are.
        latents: Whether latents are.
        file_format: Format of the images, one of `engine.images.FILE_FORMATS`; None: raw.
        quality: Of JPEG and WebP, 1 to 100; 0: the default.
    """

    images: bool
    latents: bool
    file_format: str | None
    quality: int


class RequestParser:
    """Reads the requests for one model. Its methods raise InvalidRequest, or UnknownAttribute for a name.

    Args:
        manifest: The sizes of the model.
        directions: Its attributes.
        max_images: Most images or latents of a request.
    """

    def __init__(self, manifest: Manifest, directions: Directions, max_images: int) -> None:
        self._image_size = manifest.image_size
        self._latent_dim = manifest.latent_dim
        self._directions = directions
        self._max_images = max_images

    def source(self, message: Any, field: str = "") -> Source | None:
        """What stands in `images` or `latents` of a message; None where neither is set."""
        name = message.WhichOneof("source")
        if name == "images":
            return self.images(message.images, f"{field}images")
        return self.latents(message.latents, f"{field}latents") if name else None

    def images(self, batch: pb.ImageBatch, field: str = "images") -> Images:
        """Images of a request: pixels, or files, not yet decoded."""
        form = batch.WhichOneof("images")
        if form == "raw":
            return self._pixels(batch.raw, f"{field}.raw")
        if form is None:
            raise InvalidField(field, f"has no images; set {field}.raw or {field}.files")
        files = batch.files.files
        if not files:
            raise InvalidField(f"{field}.files", "is empty; send at least one image")
        self.check_count(len(files), f"{field}.files")
        return EncodedFiles(files, f"{field}.files")

    def _pixels(self, raw: pb.RawImages, field: str) -> Bytes:
        """Raw pixels as an array, uint8 [N, S, S, 3]."""
        count, height, width, data = raw.count, raw.height, raw.width, raw.data
        size, expected = self._image_size, count * height * width * 3
        self.check_count(count, f"{field}.count")
        if (height, width) != (size, size):
            raise InvalidRequest(
                f"raw images must be {size}x{size} for this model, not {height}x{width}; "
                "resize them, or send them as files for the server to crop and resize",
                field,
            )
        if len(data) != expected:
            raise InvalidField(
                f"{field}.data", f"has {len(data)} bytes; {count} images of {height}x{width} RGB are {expected}"
            )
        return np.frombuffer(data, np.uint8).reshape(count, height, width, 3)

    def latents(self, batch: pb.LatentBatch, field: str = "latents") -> Floats:
        """Latents of a request, float32 [N, D]."""
        self.check_count(batch.count, f"{field}.count")
        if batch.dim != self._latent_dim:
            raise InvalidField(f"{field}.dim", f"is {batch.dim}; this model's latents have {self._latent_dim} values")
        data = batch.data
        expected = batch.count * batch.dim * 4
        if len(data) != expected:
            raise InvalidField(
                f"{field}.data", f"has {len(data)} bytes; {batch.count} latents of {batch.dim} float32 are {expected}"
            )
        latents = _floats(data).reshape(batch.count, batch.dim)
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

    def wishes(self, request: Any) -> Wishes:
        """What a request wants faces to have and to lack."""
        return Wishes.of(self._directions, request.having, request.lacking, getattr(request, "keep", ()))

    def check_count(self, count: int, field: str, verb: str = "send") -> None:
        """Lets 1 to `max_images` images or latents pass; `verb` says what a request does with them."""
        if count < 1:
            raise InvalidField(field, f": {count} images or latents; {verb} at least one")
        if count > self._max_images:
            raise InvalidField(
                field,
                f": {count} images or latents; a request may {verb} at most {self._max_images}: send several requests",
            )

    def _target(self, index: int, one: pb.Edit) -> str | Floats:
        target = one.WhichOneof("target")
        field = f"edits[{index}]"
        if target == "attribute":
            return one.attribute
        if target is None:
            raise InvalidField(field, "has no target; set attribute or direction")
        expected = self._latent_dim * 4
        if len(one.direction) != expected:
            raise InvalidField(
                f"{field}.direction", f"has {len(one.direction)} bytes; {self._latent_dim} float32 are {expected}"
            )
        return _floats(one.direction)


def count_sent(message: Any) -> int:
    """Images or latents that a message with a source says that it has, true or not."""
    if message.WhichOneof("source") == "latents":
        return int(message.latents.count)
    images = message.images
    return int(images.raw.count) if images.WhichOneof("images") == "raw" else len(images.files.files)


def size_sent(message: Any) -> int:
    """Bytes of a message."""
    return int(message.ByteSize())


def read_priority(request: Any) -> int:
    """Priority of a request: -1, 0 or 1."""
    try:
        return _PRIORITIES[request.priority]
    except KeyError:
        raise InvalidField("priority", f"is {request.priority}, which is none of Priority's values") from None


def read_prior(request: Any, known: Mapping[str, Prior]) -> Prior:
    """What a request with `distribution` draws from, of what its model has by name, the default first."""
    names = {pb.DISTRIBUTION_UNSPECIFIED: next(iter(known)), **{value: name for name, value in DISTRIBUTIONS.items()}}
    if (name := names.get(request.distribution)) is None:
        raise InvalidField("distribution", f"is {request.distribution}, which is none of Distribution's values")
    if name not in known:
        raise InvalidField(
            "distribution",
            f": this bundle has no {name} one, only {', '.join(known)}; take one of these, or build the bundle again",
        )
    return known[name]


def read_output(request: Any) -> OutputSpec:
    """What a request with `result` and `output` wants back."""
    if request.result not in _RESULTS:
        raise InvalidField("result", f"is {request.result}, which is none of EditResult's values")
    if request.result == pb.EDIT_RESULT_LATENTS:
        if request.HasField("output"):
            raise InvalidField("output", "is set, but only latents are asked for; ask for images, or leave it out")
        return OutputSpec(False, True, None, 0)
    return OutputSpec(True, request.result == pb.EDIT_RESULT_IMAGES_AND_LATENTS, *read_form(request.output))


def read_form(output: pb.ImageOutput) -> tuple[str | None, int]:
    """Format of the images that are to come back, None for raw, and quality, 0 for the default."""
    if output.format not in _FORMATS:
        raise InvalidField("output.format", f"is {output.format}, which is none of ImageFormat's values")
    if output.quality > 100:
        raise InvalidField("output.quality", f"is {output.quality}; it goes from 1 to 100")
    file_format = _FORMATS[output.format]
    if output.quality and file_format not in ("JPEG", "WEBP"):
        raise InvalidField("output.quality", "is for JPEG and WebP; choose one of them, or leave it out")
    return file_format, output.quality


def write_pixels(raw: pb.RawImages, pixels: Bytes) -> None:
    """Puts images, uint8 [N, S, S, 3], into a message."""
    raw.count, raw.height, raw.width, _ = pixels.shape
    raw.data = pixels.tobytes()


def latent_batch(latents: Floats) -> pb.LatentBatch:
    """Latents, float32 [N, D], as a message."""
    count, dim = latents.shape
    return pb.LatentBatch(count=count, dim=dim, data=latents.astype("<f4", copy=False).tobytes())


def _floats(data: bytes) -> Floats:
    values = np.frombuffer(data, "<f4")
    return values if sys.byteorder == "little" else values.astype(np.float32)
