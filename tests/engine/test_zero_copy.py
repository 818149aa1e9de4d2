"""What is cut out of requests by hand, and laid out by hand for responses, must be what protobuf reads."""

import time
from typing import Any

import grpc
import numpy as np
import pytest
from gates import connected
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import ServerProcess
from serving.requests import file_batch, raw_batch
from tiny_model import images_of, latents_of, random_images, tiny_directions

from engine.errors import InvalidRequest
from engine.service.request_parser import latent_batch
from engine.service.zero_copy import (
    ImageResponse,
    StreamResponse,
    ZeroCopyMessage,
    field_tree,
    parser,
    split_pixels,
    to_varint,
)
from protos import dfcvae_pb2 as pb

PIXELS = bytes(range(256)) * 48
KINDS: list[Any] = [pb.EncodeRequest, pb.EditRequest, pb.EditStreamRequest, pb.InterpolateRequest, pb.DecodeRequest]
EDIT = field_tree(pb.EditRequest.DESCRIPTOR)
RAW = pb.RawImages(count=4, height=32, width=32, data=PIXELS)
IMAGES = pb.ImageBatch(raw=RAW)


def parsed(kind: Any, data: bytes) -> Message:
    """The message with its pixels put back."""
    rest, found = split_pixels(data, field_tree(kind.DESCRIPTOR))
    message: Message = kind.FromString(rest)
    put_back(message, found)
    return message


def put_back(message: Any, found: Any) -> None:
    for name, value in found.items():
        if isinstance(value, memoryview):
            setattr(message, name, bytes(value))
        elif message.HasField(name):  # else a later field of the same oneof took its place
            put_back(getattr(message, name), value)


def assert_read_as_protobuf_does(kind: Any, data: bytes) -> None:
    try:
        expected = kind.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            parsed(kind, data)
    else:
        found = parsed(kind, data)
        assert found == expected
        assert found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def field(number: int, content: bytes) -> bytes:
    return b"".join((to_varint(number << 3 | 2), to_varint(len(content)), content))


@pytest.mark.parametrize(
    ("request_", "paths"),
    [
        (pb.EncodeRequest(images=IMAGES, model="m"), ["images"]),
        (pb.EditRequest(images=IMAGES, edits=[pb.Edit(attribute="Male", strength=1)], keep=["Smiling"]), ["images"]),
        (pb.EditStreamRequest(images=IMAGES, id=2**63, output=pb.ImageOutput(quality=3)), ["images"]),
        (pb.InterpolateRequest(start=pb.WalkEnd(images=IMAGES), end=pb.WalkEnd(images=IMAGES)), ["start", "end"]),
    ],
)
def test_pixels_are_views_of_the_request_and_the_rest_is_small(request_: Any, paths: list[str]) -> None:
    data = request_.SerializeToString()
    rest, found = split_pixels(data, field_tree(request_.DESCRIPTOR))
    assert len(rest) < 100
    lifted: Any = ZeroCopyMessage(type(request_).FromString(rest), found)
    for path in paths:
        end = lifted if path == "images" else getattr(lifted, path)
        assert end.HasField("images")
        assert end.images.WhichOneof("images") == "raw"
        raw = end.images.raw
        assert (raw.count, raw.height, raw.width) == (4, 32, 32)
        assert raw.data == PIXELS
        assert np.shares_memory(np.frombuffer(raw.data, np.uint8), np.frombuffer(data, np.uint8))
    assert parsed(type(request_), data) == request_


@pytest.mark.parametrize(
    "request_",
    [
        pb.EditRequest(latents=pb.LatentBatch(count=4, dim=32, data=PIXELS)),
        pb.EditRequest(images=file_batch([PIXELS])),
        pb.EditRequest(edits=[pb.Edit(direction=PIXELS)]),
        pb.SampleRequest(model="m" * 5000),
        pb.GetModelRequest(),
    ],
)
def test_what_is_no_pixels_is_left_alone(request_: Any) -> None:
    data = request_.SerializeToString()
    rest, found = split_pixels(data, field_tree(request_.DESCRIPTOR))
    assert rest is data
    assert not found


@pytest.mark.parametrize(
    "odd",
    [
        field(1, IMAGES.SerializeToString()) * 2,
        field(1, field(1, RAW.SerializeToString()) * 2),
        field(1, field(1, RAW.SerializeToString() + field(4, b"others"))),
        field(1, field(1, RAW.SerializeToString())) + b"\x0b\x0c",  # a group of the same number
        b"\x8a\x00" + field(1, field(1, RAW.SerializeToString()))[1:],  # a long way to write the same tag
        field(100, b"") + field(1, IMAGES.SerializeToString()),
        field(1, field(1, b"\x22\x81\x80\x80\x80\x00p")),  # a long way to write the length 1
    ],
)
def test_what_is_not_plain_is_left_to_protobuf(odd: bytes) -> None:
    assert split_pixels(odd, EDIT) == (odd, {})
    pb.EditRequest.FromString(odd)


def test_the_last_field_of_a_oneof_counts() -> None:
    images, latents = field(1, IMAGES.SerializeToString()), field(2, pb.LatentBatch(count=1).SerializeToString())
    for data in (images + latents, latents + images):
        rest, found = split_pixels(data, EDIT)
        assert found
        assert len(rest) < 100
        assert_read_as_protobuf_does(pb.EditRequest, data)
    raw, files = field(1, RAW.SerializeToString()), field(2, field(1, b"file"))
    for batch in (raw + files, files + raw):
        assert_read_as_protobuf_does(pb.EditRequest, field(1, batch))


def test_a_server_reads_large_requests_as_small_ones(server: ServerProcess) -> None:
    images, others = random_images(500, seed=1), random_images(500, seed=2)
    source = raw_batch(images)
    edits = [pb.Edit(attribute="Smiling", strength=2)]
    smiling = images_of(latents_of(images) + 2 * tiny_directions().vectors[0]).tobytes()
    with connected(server.target) as stub:
        assert stub.Encode(pb.EncodeRequest(images=source)).mu.data == latents_of(images).tobytes()
        assert stub.Edit(pb.EditRequest(images=source, edits=edits)).images.raw.data == smiling
        steps = [pb.EditStreamRequest(images=source, edits=edits), pb.EditStreamRequest(edits=edits)]
        for response in stub.EditStream(iter(steps)):
            assert response.edited.images.raw.data == smiling
        walk = pb.InterpolateRequest(steps=2, result=pb.EDIT_RESULT_LATENTS)
        walk.start.images.CopyFrom(source)
        walk.end.images.CopyFrom(raw_batch(others))
        points = np.frombuffer(stub.Interpolate(walk).latents.data, "<f4")
        expected = np.stack((latents_of(images), latents_of(others)), axis=1)
        np.testing.assert_array_equal(points.reshape(expected.shape), expected)
        source.raw.count = 499
        with pytest.raises(grpc.RpcError) as refusal:
            stub.Edit(pb.EditRequest(images=source, edits=edits))
        assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "images.raw.data has 96000 bytes; 499 images of 8x8 RGB are 95808" in refusal.value.details()


@pytest.mark.parametrize(
    "way",
    [
        lambda fields: fields,
        lambda fields: b"\x0b\x0c" + fields,
        lambda fields: b"\x08\x80\x00" + fields,
        lambda fields: b"\x09" + bytes(8) + fields,
        lambda fields: b"\x0d" + bytes(4) + fields,
        lambda fields: field(1, field(2, fields)),  # images.files
        lambda fields: field(1, field(2, fields)) + b"\x0b\x0c",
        lambda fields: field(1, field(2, fields)) * 2,
        lambda fields: field(1, field(2, fields) + b"\x0a"),  # ends too early
        lambda fields: field(1, field(1, fields)),
        lambda fields: field(2, fields),
        lambda fields: b"\x0b" + field(1, b"\xff") + b"\x0c" + field(1, field(2, fields)),  # a group may hold anything
    ],
)
def test_millions_of_fields_are_refused_before_they_become_objects(way: Any) -> None:
    data = way(b"\x0a\x00" * 5_000_000)
    started = time.process_time()
    with pytest.raises(InvalidRequest, match="more than 16384 fields"):
        parser(pb.EditRequest)(data)
    assert time.process_time() - started < 1


# Serialised messages with all that writers of protobuf don't write: repeated fields, groups, long numbers, odd kinds.
def _varints(value: int) -> st.SearchStrategy[bytes]:
    short = to_varint(value)
    padded = bytes(byte | 0x80 for byte in short)
    paddings = st.sampled_from([b"\x00", b"\x80\x00", b"\x80\x80\x80\x80\x00", b"\x80" * 9 + b"\x00"])
    odd = paddings.map(lambda padding: padded + padding)
    return st.sampled_from([False] * 15 + [True]).flatmap(lambda is_odd: odd if is_odd else st.just(short))


@st.composite
def _fields(draw: st.DrawFn, depth: int) -> bytes:
    """A message of which a field may lead to pixels, `depth` messages further in."""
    fields = []
    inward = 1 if depth else 4
    for number in draw(st.permutations([inward, *draw(st.lists(st.sampled_from([1, 2, 3, 4, 15, 16]), max_size=2))])):
        kind = draw(st.sampled_from([2] * 12 + [0, 1, 5, 3, 4]))
        content = b""
        if kind == 0:
            content = draw(_varints(draw(st.integers(0, 2**64 - 1))))
        elif kind == 2:
            content = draw(_fields(depth - 1)) if depth and number < 3 else draw(st.sampled_from([b"", b"pixels"]))
            content = draw(_varints(len(content))) + content
        else:
            content = bytes({1: 8, 5: 4}.get(kind, 0))
        fields.append(draw(_varints(number << 3 | kind)) + content)
    return b"".join(fields)


@st.composite
def _messages(draw: st.DrawFn) -> tuple[Any, bytes]:
    kind = draw(st.sampled_from(KINDS))
    return kind, draw(_fields(3 if kind is pb.InterpolateRequest else 2))


@settings(max_examples=600, derandomize=True, database=None, deadline=None)
@given(_messages())
def test_odd_messages_are_read_as_protobuf_does(case: tuple[Any, bytes]) -> None:
    assert_read_as_protobuf_does(*case)


_texts = st.sampled_from(["", "Male", "ß"])
_batches = st.builds(
    pb.ImageBatch,
    raw=st.none()
    | st.builds(pb.RawImages, count=st.integers(0, 300), height=st.just(64), data=st.binary(max_size=300)),
    files=st.none() | st.builds(pb.EncodedImages, files=st.lists(st.binary(max_size=9), max_size=3)),
)
_sources = {
    "images": st.none() | _batches,
    "latents": st.none() | st.builds(pb.LatentBatch, data=st.binary(max_size=9)),
}
_ends = st.builds(pb.WalkEnd, **_sources)
_edits = st.lists(st.builds(pb.Edit, attribute=_texts, strength=st.floats(width=32)), max_size=2)
_rest: dict[str, Any] = {"model": _texts, "priority": st.integers(0, 5)}
_requests = st.one_of(
    st.builds(pb.EncodeRequest, images=_sources["images"], **_rest),
    st.builds(pb.EditRequest, **_sources, edits=_edits, keep=st.lists(_texts, max_size=2), **_rest),
    st.builds(pb.EditStreamRequest, **_sources, edits=_edits, id=st.integers(0, 2**64 - 1), **_rest),
    st.builds(pb.InterpolateRequest, start=_ends, end=_ends, steps=st.integers(0, 9), **_rest),
)


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(_requests, st.data())
def test_valid_and_damaged_requests_are_read_as_protobuf_does(request_: Any, data: st.DataObject) -> None:
    whole = request_.SerializeToString()
    kind = type(request_)
    assert_read_as_protobuf_does(kind, whole)
    if whole:
        at = data.draw(st.integers(0, len(whole) - 1))
        assert_read_as_protobuf_does(kind, whole[:at])
        byte = data.draw(st.sampled_from([0x00, 0x0A, 0x12, 0x22, 0x80, 0xFF]) | st.integers(0, 255))
        assert_read_as_protobuf_does(kind, whole[:at] + bytes([byte]) + whole[at + 1 :])
        assert_read_as_protobuf_does(kind, whole[:at] + bytes([byte]) + whole[at:])
        assert_read_as_protobuf_does(kind, whole + whole[at:])


@pytest.mark.parametrize("count", [1, 2, 127, 128, 300])
@pytest.mark.parametrize("side", [1, 8, 64, 160])
def test_pixels_are_the_field_of_the_message(count: int, side: int) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    message = pb.EditResponse(latents=latent_batch(np.ones((count, 5), np.float32)))
    data = ImageResponse(message, pixels).SerializeToString()
    raw = pb.RawImages(count=count, height=side, width=side, data=pixels.tobytes())
    expected = pb.EditResponse(images=pb.ImageBatch(raw=raw), latents=message.latents)
    assert data == expected.SerializeToString()


@pytest.mark.parametrize("number", [0, 1, 2**63])
@pytest.mark.parametrize("pixels", [None, np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)])
def test_a_stream_response_is_its_message(
    number: int, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None
) -> None:
    message = pb.EditResponse(latents=latent_batch(np.ones((2, 5), np.float32)))
    read = pb.EditStreamResponse.FromString(StreamResponse(ImageResponse(message, pixels), number).SerializeToString())
    assert (read.id, read.edited.latents) == (number, message.latents)
    assert read.edited.images.raw.data == (b"" if pixels is None else pixels.tobytes())


def test_a_slice_of_a_batch_is_laid_out_too() -> None:
    batch = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    read = pb.DecodeResponse.FromString(ImageResponse(pb.DecodeResponse(), batch[1:3, ::-1]).SerializeToString())
    assert read.images.raw.data == batch[1:3, ::-1].tobytes()
