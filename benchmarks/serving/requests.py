"""Requests as they go over the wire: pictures, messages made of them, and what answers hold.

Shapes: N images of side S, latents of dimension D.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import grpc
import numpy as np
from PIL import Image

from engine.arrays import Array, Bytes, Floats
from engine.client import FileFormat, StreamEdit, messages
from engine.images import encode_file
from export.errors import InputError
from protos import dfcvae_pb2 as pb
from protos import dfcvae_pb2_grpc
from protos import open_inference_pb2 as infer

Operation = Literal["encode", "edit", "decode", "slide"]
Form = Literal["raw", "jpeg"]
Transport = Literal["unary", "infer", "stream"]
Moves = list[tuple[str | Floats, float]]

STRENGTH = 1.5
SEED = 0
TIMEOUT_S = 120.0  # what isn't answered by then hangs
SERVICE = "/dfcvae.v1.LatentEngine/"
INFER = "/inference.GRPCInferenceService/ModelInfer"
_DATATYPES = {"u": "UINT8", "f": "FP32", "S": "BYTES"}  # by numpy's kind
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # or all channels would share one connection
)


@dataclass(frozen=True)
class Case:
    """What is sent, and how much of it at once."""

    # encode, edit or decode; or slide: an edit without a source on a stream, which costs only a decode
    operation: Operation
    form: Form  # raw pixels both ways, or JPEG files both ways. (Encode answers, and Decode takes, latents.)
    transport: Transport  # unary calls; ModelInfer, unary calls of the Open Inference Protocol; or EditStream
    images: int  # images or latents in a request
    in_flight: int  # requests whose answers are awaited at any time


@dataclass(frozen=True)
class Prepared:
    """A request that is sent again and again."""

    path: str  # method, as HTTP/2 names it
    body: bytes  # its message, serialised
    opening: bytes | None = None  # a message that a stream starts with; None for none
    stream: bool = False  # whether a call takes many such messages
    answer_bytes: int = 0  # length of the right answer's message


def stub_of(channel: Any) -> Any:
    """The service's methods on a channel."""
    return dfcvae_pb2_grpc.LatentEngineStub(channel)  # type: ignore[no-untyped-call]


def ask_model(target: str) -> pb.GetModelResponse:
    """What the server serves."""
    with grpc.insecure_channel(target) as channel:
        try:
            model: pb.GetModelResponse = stub_of(channel).GetModel(pb.GetModelRequest(), timeout=20)
        except grpc.RpcError as error:
            raise InputError(f"no server answers at {target} ({error.code().name}); check --target") from None
    return model


def ask(target: str, prepared: Prepared) -> bytes:
    """Sends a request once. Returns its answer."""
    messages = [prepared.body] if prepared.opening is None else [prepared.opening, prepared.body]
    with grpc.insecure_channel(target, OPTIONS) as channel:
        try:
            # On the wire a unary call is a stream of one message.
            *_, answer = channel.stream_stream(prepared.path)(iter(messages), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise InputError(f"the server refused {prepared.path}: {error.code().name}: {error.details()}") from None
    return bytes(answer)


def prepare(case: Case, model: pb.GetModelResponse) -> Prepared:
    """Makes the messages of a case: edit and slide on a stream, or encode, edit and decode in calls."""
    if case.transport == "infer":
        return _prepare_infer(case, model)
    file_format: FileFormat | None = "JPEG" if case.form == "jpeg" else None
    if case.operation == "decode":
        decode = messages.decode_request(random_latents(case.images, model.latent_dim), file_format)
        return Prepared(f"{SERVICE}Decode", decode.SerializeToString())
    source = sources(case, model.image_size, model.preprocessing.crop or None)
    if case.operation == "encode":
        return Prepared(f"{SERVICE}Encode", messages.encode_request(source).SerializeToString())
    edits = edits_of([attribute.name for attribute in model.attributes], model.latent_dim)
    step = StreamEdit(source, edits, file_format=file_format)
    if case.transport == "unary":
        return Prepared(f"{SERVICE}Edit", messages.edit_request(step).SerializeToString())
    whole = stream_request(step).SerializeToString()
    if case.operation == "edit":
        return Prepared(f"{SERVICE}EditStream", whole, stream=True)
    slide = stream_request(replace(step, source=None)).SerializeToString()
    return Prepared(f"{SERVICE}EditStream", slide, opening=whole, stream=True)


def edits_of(names: Sequence[str], latent_dim: int) -> Moves:
    """The edit that is asked for: the model's first attribute, or a direction where it has none."""
    return [(names[0] if names else np.full(latent_dim, 0.1, np.float32), STRENGTH)]


def stream_request(step: StreamEdit, number: int = 0) -> pb.EditStreamRequest:
    """A message of an EditStream, for the default model."""
    return messages.stream_request(step, {"model": "", "priority": "normal"}, number)


def infer_request(model: str, tensors: Mapping[str, Array]) -> infer.ModelInferRequest:
    """A request of the Open Inference Protocol with raw contents: of bytes, float32, or one text as numpy's bytes."""
    request = infer.ModelInferRequest(model_name=model)
    for name, values in tensors.items():
        kind, contents = values.dtype.kind, values.tobytes()
        request.inputs.add(name=name, datatype=_DATATYPES[kind], shape=values.shape)
        request.raw_input_contents.append(len(contents).to_bytes(4, "little") + contents if kind == "S" else contents)
    return request


def _prepare_infer(case: Case, model: pb.GetModelResponse) -> Prepared:
    """The same request as tensors with raw contents; the answer has the same values."""
    tensors: dict[str, Array]
    if case.operation == "decode":
        tensors = {"latents": random_latents(case.images, model.latent_dim)}
    else:
        tensors = {"images": pictures(case.images, model.image_size, SEED)}
    if case.operation == "edit" and model.attributes:
        tensors["attributes"] = np.array([model.attributes[0].name.encode()])
        tensors["strengths"] = np.array([STRENGTH], "<f4")
    elif case.operation == "edit":
        tensors["offsets"] = np.full(model.latent_dim, 0.1 * STRENGTH, "<f4")
    request = infer_request({"encode": "encoder", "decode": "decoder"}.get(case.operation, "edit"), tensors)
    if case.operation != "encode":  # whose answer has both of its outputs
        request.outputs.add(name="images")
    return Prepared(INFER, request.SerializeToString())


def read_answer(case: Case, answer: bytes) -> Array:
    """What an answer holds: latents float32 [N, D] of an encode, else images uint8 [N, S, S, 3]."""
    if case.transport == "infer":
        response = infer.ModelInferResponse.FromString(answer)
        shape, values = response.outputs[0].shape, response.raw_output_contents[0]
        return np.frombuffer(values, "<f4" if case.operation == "encode" else np.uint8).reshape(shape)
    if case.operation == "encode":
        return messages.read_posterior(pb.EncodeResponse.FromString(answer)).mu
    if case.transport == "unary":
        kind = pb.DecodeResponse if case.operation == "decode" else pb.EditResponse
        return read_images(kind.FromString(answer))
    streamed = pb.EditStreamResponse.FromString(answer)
    if streamed.WhichOneof("outcome") != "edited":
        raise InputError(f"the stream answered with an error: {streamed.error.message}")
    return read_images(streamed.edited)


def read_images(answer: Any) -> Bytes:
    """Images of an answer, uint8 [N, S, S, 3], pixels or files."""
    files = messages.read_files(answer)
    return decode_files(files) if files else messages.read_images(answer)


def decode_files(files: Sequence[bytes]) -> Bytes:
    """Pixels of image files, uint8 [N, S, S, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def sources(case: Case, image_size: int, crop: int | None) -> Bytes | list[bytes]:
    """Images of a case as they are sent: pixels, uint8 [N, S, S, 3], or JPEG files."""
    if case.form == "raw":
        return pictures(case.images, image_size, SEED)
    return jpegs(pictures(case.images, file_side(image_size, crop), SEED))


def pictures(count: int, size: int, seed: int) -> Bytes:
    """Random pictures of smooth colours, uint8 [N, S, S, 3]: no two look alike to a model, as noise does."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    resized = [Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC) for one in coarse]
    return np.stack([np.asarray(one) for one in resized])


def jpegs(images: Bytes) -> list[bytes]:
    """Images, uint8 [N, S, S, 3], as JPEG files of the server's default quality."""
    return [encode_file(image, "JPEG") for image in images]


def file_side(image_size: int, crop: int | None) -> int:
    """Side of files to send to a model, pixels: what it cuts out, or three times what it needs."""
    return crop or 3 * image_size


def random_latents(count: int, dim: int) -> Floats:
    """Latents drawn from N(0, I), float32 [N, D]."""
    return np.random.default_rng(SEED).standard_normal((count, dim), np.float32)
