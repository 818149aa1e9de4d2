"""Requests that are prepared once and sent again and again, as the bytes that go over the wire."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import numpy as np
import numpy.typing as npt
from PIL import Image

from protos import dfcvae_pb2 as pb
from protos import dfcvae_pb2_grpc
from serving.pictures import file_side, jpeg_files, pictures
from serving.process import ScriptError

Operation = Literal["encode", "edit", "decode", "slide"]
Form = Literal["raw", "jpeg"]
Transport = Literal["unary", "stream"]

STRENGTH = 1.5
NO_LIMIT = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

_SERVICE = "/dfcvae.v1.LatentEngine/"
SEED = 0


@dataclass(frozen=True)
class Case:
    """What is sent, and how much of it at once.

    Attributes:
        operation: encode, edit or decode; or slide: an edit without a source on a stream, which costs only a decode.
        form: Raw pixels both ways, or JPEG files both ways. (Encode answers, and Decode takes, latents.)
        transport: Unary calls, or EditStream.
        images: Images or latents in a request.
        in_flight: Requests whose answers are awaited at any time.
    """

    operation: Operation
    form: Form
    transport: Transport
    images: int
    in_flight: int


@dataclass(frozen=True)
class Prepared:
    """A case's messages, serialised.

    Attributes:
        path: Method, as HTTP/2 names it.
        body: The message that is sent again and again.
        opening: A message that a stream starts with; None for none.
    """

    path: str
    body: bytes
    opening: bytes | None = None


def ask_model(target: str, timeout: float = 20.0) -> pb.GetModelResponse:
    """What the server serves.

    Raises:
        ScriptError: It can't be reached.
    """
    with grpc.insecure_channel(target) as channel:
        stub: Any = dfcvae_pb2_grpc.LatentEngineStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer: pb.GetModelResponse = stub.GetModel(pb.GetModelRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise ScriptError(f"no server answers at {target} ({error.code().name}); check --target") from None
    return answer


def prepare(case: Case, model: pb.GetModelResponse) -> Prepared:
    """Makes the messages of a case.

    Raises:
        ScriptError: There is no such case.
    """
    if case.operation in ("slide", "edit") and case.transport == "stream":
        return _stream(case, model)
    if case.transport == "stream" or case.operation == "slide":
        raise ScriptError(f"there is no {case.operation} as {case.transport}: EditStream does edit and slide")
    output = pb.ImageOutput(format=pb.IMAGE_FORMAT_JPEG if case.form == "jpeg" else pb.IMAGE_FORMAT_RAW)
    if case.operation == "encode":
        return Prepared(f"{_SERVICE}Encode", pb.EncodeRequest(images=images(case, model)).SerializeToString())
    if case.operation == "decode":
        request = pb.DecodeRequest(latents=latents(case.images, model), output=output)
        return Prepared(f"{_SERVICE}Decode", request.SerializeToString())
    edit = pb.EditRequest(images=images(case, model), edits=[_move(model)], output=output)
    return Prepared(f"{_SERVICE}Edit", edit.SerializeToString())


def images(case: Case, model: pb.GetModelResponse) -> pb.ImageBatch:
    """The images of a case."""
    if case.form == "jpeg":
        side = file_side(model.image_size, model.preprocessing.crop or None)
        return pb.ImageBatch(files=pb.EncodedImages(files=jpeg_files(case.images, side, SEED)))
    data = pictures(case.images, model.image_size, SEED).tobytes()
    size = model.image_size
    return pb.ImageBatch(raw=pb.RawImages(count=case.images, height=size, width=size, data=data))


def latents(count: int, model: pb.GetModelResponse) -> pb.LatentBatch:
    """Latents drawn from N(0, I)."""
    values = np.random.default_rng(SEED).standard_normal((count, model.latent_dim), dtype=np.float32)
    return pb.LatentBatch(count=count, dim=model.latent_dim, data=values.astype("<f4").tobytes())


def read_answer(case: Case, answer: bytes) -> npt.NDArray[Any]:
    """What an answer holds: latents float32 [N, D] of an encode, else images uint8 [N, S, S, 3].

    Raises:
        ScriptError: A stream answered with an error.
    """
    if case.operation == "encode":
        mu = pb.EncodeResponse.FromString(answer).mu
        return np.frombuffer(mu.data, "<f4").reshape(mu.count, mu.dim)
    if case.transport == "stream":
        streamed = pb.EditStreamResponse.FromString(answer)
        if streamed.WhichOneof("outcome") != "edited":
            raise ScriptError(f"the stream answered with an error: {streamed.error.message}")
        return read_images(streamed.edited.images)
    if case.operation == "edit":
        return read_images(pb.EditResponse.FromString(answer).images)
    return read_images(pb.DecodeResponse.FromString(answer).images)


def read_images(batch: pb.ImageBatch) -> npt.NDArray[np.uint8]:
    """Images of an answer, uint8 [N, S, S, 3], in either form."""
    if batch.WhichOneof("images") == "files":
        return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in batch.files.files])
    raw = batch.raw
    return np.frombuffer(raw.data, np.uint8).reshape(raw.count, raw.height, raw.width, 3)


def _stream(case: Case, model: pb.GetModelResponse) -> Prepared:
    output = pb.ImageOutput(format=pb.IMAGE_FORMAT_JPEG if case.form == "jpeg" else pb.IMAGE_FORMAT_RAW)
    whole = pb.EditStreamRequest(images=images(case, model), edits=[_move(model)], output=output).SerializeToString()
    if case.operation == "edit":
        return Prepared(f"{_SERVICE}EditStream", whole)
    slide = pb.EditStreamRequest(edits=[_move(model)], output=output).SerializeToString()
    return Prepared(f"{_SERVICE}EditStream", slide, opening=whole)


def _move(model: pb.GetModelResponse) -> pb.Edit:
    if model.attributes:
        return pb.Edit(attribute=model.attributes[0].name, strength=STRENGTH)
    direction = np.full(model.latent_dim, 0.1, np.float32)
    return pb.Edit(direction=direction.astype("<f4").tobytes(), strength=STRENGTH)
