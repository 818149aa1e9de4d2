"""A synchronous client: numpy or image files in, numpy or image files out.

Shapes: N images of side S, latents of dimension D; `Client.model()` says S and D.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple

import grpc
import numpy as np
import numpy.typing as npt

from protos import dfcvae_pb2 as pb
from protos import dfcvae_pb2_grpc

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Images = Bytes | Sequence[bytes]
Edits = Mapping[str, float] | Iterable[tuple[str | Floats, float]]
FileFormat = Literal["JPEG", "PNG", "WEBP"]

_FORMATS = {"JPEG": pb.IMAGE_FORMAT_JPEG, "PNG": pb.IMAGE_FORMAT_PNG, "WEBP": pb.IMAGE_FORMAT_WEBP}


class ClientError(Exception):
    """A call that failed.

    Attributes:
        status: Name of the gRPC status, for example "INVALID_ARGUMENT".
        message: What the server, or gRPC, said.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Posterior(NamedTuple):
    """What the encoder says about images: means and log variances, float32 [N, D] each."""

    mu: Floats
    log_var: Floats


@dataclass(frozen=True)
class Attribute:
    """An attribute that can be edited: its name, and how many training images had it and had it not."""

    name: str
    positives: int
    negatives: int


@dataclass(frozen=True)
class Model:
    """What a server serves; the fields are those of `GetModelResponse` in protos/dfcvae.proto."""

    image_size: int
    latent_dim: int
    attributes: tuple[Attribute, ...]
    backend: str
    precision: str
    max_batch_size: int
    max_images_per_request: int
    max_message_bytes: int
    max_queued_images: int
    max_pixels_per_file: int
    crop: int | None
    resize: str
    versions: dict[str, str]


class Client:
    """A connection to one server; use it as a context manager, from as many threads as you like.

    Wherever images go in they are either pixels, uint8 [N, S, S, 3] RGB, or a sequence of JPEG, PNG or WebP
    files (their bytes), which the server crops and resizes as in training. Requests are sent whole: more than
    `Model.max_images_per_request` images are refused, not split.

    Every method raises `ClientError` with the server's status and message when a call fails, and `ValueError`
    when an argument can't be sent.

    Args:
        target: "HOST:PORT" of the server.
        timeout: Deadline of every call, seconds; None for none.
    """

    def __init__(self, target: str, timeout: float | None = 60.0) -> None:
        self._timeout = timeout
        self._channel = grpc.insecure_channel(
            target,
            # The server's limits hold; gRPC's own, 4 MB for an answer, would cut them short.
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self._stub: Any = dfcvae_pb2_grpc.LatentEngineStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are under way are cancelled."""
        self._channel.close()

    def model(self) -> Model:
        """What the server serves."""
        answer = self._call(self._stub.GetModel, pb.GetModelRequest())
        return Model(
            image_size=answer.image_size,
            latent_dim=answer.latent_dim,
            attributes=tuple(Attribute(one.name, one.positives, one.negatives) for one in answer.attributes),
            backend=answer.backend,
            precision=answer.precision,
            max_batch_size=answer.max_batch_size,
            max_images_per_request=answer.limits.max_images_per_request,
            max_message_bytes=answer.limits.max_message_bytes,
            max_queued_images=answer.limits.max_queued_images,
            max_pixels_per_file=answer.limits.max_pixels_per_file,
            crop=answer.preprocessing.crop or None,
            resize=answer.preprocessing.resize,
            versions=dict(answer.versions),
        )

    def encode(self, images: Images) -> Posterior:
        """Images to the parameters of their posteriors."""
        answer = self._call(self._stub.Encode, pb.EncodeRequest(images=_image_batch(images)))
        return Posterior(_floats(answer.mu), _floats(answer.log_var))

    def decode(self, latents: Floats) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, S, S, 3]."""
        request = pb.DecodeRequest(latents=_latent_batch(latents))
        return _pixels(self._call(self._stub.Decode, request).images)

    def decode_files(self, latents: Floats, file_format: FileFormat = "PNG", quality: int = 0) -> list[bytes]:
        """Latents, float32 [N, D], to one image file each; quality 1 to 100, 0 for the server's default."""
        request = pb.DecodeRequest(latents=_latent_batch(latents), output=_output(file_format, quality))
        return list(self._call(self._stub.Decode, request).images.files.files)

    def edit(self, source: Images | Floats, edits: Edits, keep: Iterable[str] = ()) -> Bytes:
        """Moves images or latents along directions.

        Args:
            source: Images, or latents float32 [N, D].
            edits: Strengths by attribute name, or pairs of a name or an explicit direction float32 [D] and a
                strength. Strength 1 is the mean difference between having the attribute and not having it.
            keep: Attributes that must stay as they are: their directions are projected out of the edits.

        Returns:
            Edited images, uint8 [N, S, S, 3].
        """
        return _pixels(self._edit(source, edits, keep).images)

    def edit_files(
        self,
        source: Images | Floats,
        edits: Edits,
        keep: Iterable[str] = (),
        file_format: FileFormat = "PNG",
        quality: int = 0,
    ) -> list[bytes]:
        """As `edit`, to one image file each; quality 1 to 100, 0 for the server's default."""
        answer = self._edit(source, edits, keep, output=_output(file_format, quality))
        return list(answer.images.files.files)

    def edit_latents(self, source: Images | Floats, edits: Edits, keep: Iterable[str] = ()) -> Floats:
        """As `edit`, to latents float32 [N, D]; nothing is decoded."""
        return _floats(self._edit(source, edits, keep, result=pb.EDIT_RESULT_LATENTS).latents)

    def edit_both(self, source: Images | Floats, edits: Edits, keep: Iterable[str] = ()) -> tuple[Bytes, Floats]:
        """As `edit`, to images uint8 [N, S, S, 3] and latents float32 [N, D]."""
        answer = self._edit(source, edits, keep, result=pb.EDIT_RESULT_IMAGES_AND_LATENTS)
        return _pixels(answer.images), _floats(answer.latents)

    def _edit(self, source: Images | Floats, edits: Edits, keep: Iterable[str], **choices: Any) -> Any:
        request = pb.EditRequest(edits=_edit_list(edits), keep=list(keep), **choices)
        if isinstance(source, np.ndarray) and np.issubdtype(source.dtype, np.floating):
            request.latents.CopyFrom(_latent_batch(source))
        else:
            request.images.CopyFrom(_image_batch(source))
        return self._call(self._stub.Edit, request)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise ClientError(error.code().name, error.details() or "no details") from None


def _image_batch(images: Any) -> pb.ImageBatch:
    if not isinstance(images, np.ndarray):
        if isinstance(images, (bytes, str)) or not all(isinstance(file, bytes) for file in images):
            raise ValueError("images must be a uint8 array, or a sequence of files given as bytes")
        return pb.ImageBatch(files=pb.EncodedImages(files=images))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [N, S, S, 3], not {images.dtype} {list(images.shape)}")
    count, height, width, _ = images.shape
    return pb.ImageBatch(raw=pb.RawImages(count=count, height=height, width=width, data=images.tobytes()))


def _latent_batch(latents: npt.NDArray[Any]) -> pb.LatentBatch:
    if not np.issubdtype(latents.dtype, np.floating) or latents.ndim != 2:
        raise ValueError(f"latents must be float32 [N, D], not {latents.dtype} {list(latents.shape)}")
    return pb.LatentBatch(count=latents.shape[0], dim=latents.shape[1], data=latents.astype("<f4").tobytes())


def _edit_list(edits: Edits) -> list[pb.Edit]:
    pairs: Iterable[tuple[str | Floats, float]] = edits.items() if isinstance(edits, Mapping) else edits
    return [
        pb.Edit(attribute=target, strength=strength)
        if isinstance(target, str)
        else pb.Edit(direction=np.asarray(target).astype("<f4").tobytes(), strength=strength)
        for target, strength in pairs
    ]


def _output(file_format: FileFormat, quality: int) -> pb.ImageOutput:
    return pb.ImageOutput(format=_FORMATS[file_format], quality=quality)


def _pixels(batch: pb.ImageBatch) -> Bytes:
    raw = batch.raw
    return np.frombuffer(raw.data, np.uint8).reshape(raw.count, raw.height, raw.width, 3).copy()


def _floats(batch: pb.LatentBatch) -> Floats:
    return np.frombuffer(batch.data, "<f4").reshape(batch.count, batch.dim).astype(np.float32)
