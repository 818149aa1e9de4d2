"""Requests that are cheap to send and dear to read are refused before they are read; all others are protobuf's."""

import time
from typing import Any

import grpc
import numpy as np
import pytest
from batches import file_batch, raw_batch
from gates import connected
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import ServerProcess
from tiny_model import images_of, latents_of, random_images, tiny_directions

from engine.errors import InvalidRequest
from engine.service.deserializer import deserializer
from protos import dfcvae_pb2 as pb
from protos import open_inference_pb2

deserialize = deserializer(pb.EditRequest)


def varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def field(number: int, content: bytes) -> bytes:
    return b"".join((varint(number << 3 | 2), varint(len(content)), content))


def test_large_requests_are_read_as_protobuf_does() -> None:
    edits = [pb.Edit(attribute="Male", strength=1)] * 1024
    output = pb.ImageOutput(format=pb.IMAGE_FORMAT_JPEG)
    raw = pb.ImageBatch(raw=pb.RawImages(count=2, height=300, width=300, data=bytes(540_000)))
    for images in (raw, file_batch([bytes(500)] * 1024)):
        request = pb.EditRequest(images=images, edits=edits, keep=["Smiling"] * 1024, output=output)
        assert deserialize(request.SerializeToString()) == request


# Bytes as writers of protobuf don't write them, too: groups, numbers that are longer than they need be, odd kinds.
_odd = st.one_of(
    st.binary(max_size=40),
    st.lists(
        st.sampled_from(
            [
                b"\x0b",
                b"\x0c",
                b"\x8a\x00\x00",
                b"\x08\x80\x80\x00",
                b"\x0d0000",
                b"\x0900000000",
                b"\x0e",
                b"\x22\x81\x80\x00p",
            ]
        )
        | st.binary(max_size=9).map(lambda content: field(1, field(2, content))),
        max_size=6,
    ).map(b"".join),
)


@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(_odd, st.booleans())
def test_any_bytes_are_a_message_or_none(data: bytes, large: bool) -> None:
    # A large field in front makes the bytes pass through the count of fields.
    whole = pb.EditRequest(model="m" * 70_000 if large else "").SerializeToString() + data
    try:
        expected = pb.EditRequest.FromString(whole)
    except DecodeError:
        with pytest.raises(DecodeError):
            deserialize(whole)
    else:
        assert deserialize(whole) == expected


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
        deserialize(data)
    assert time.process_time() - started < 1


def test_millions_of_numbers_are_refused_before_they_become_objects() -> None:
    contents = open_inference_pb2.InferTensorContents(uint_contents=bytes(2**20 + 1))
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(name="images", contents=contents)
    data = open_inference_pb2.ModelInferRequest(inputs=[tensor]).SerializeToString()
    with pytest.raises(InvalidRequest, match="more than 1048576 bytes of numbers in uint_contents; send them"):
        deserializer(open_inference_pb2.ModelInferRequest)(data)


def test_a_server_refuses_very_many_kept_names(server: ServerProcess) -> None:
    request = pb.EditRequest(
        images=raw_batch(random_images(1, seed=1)),
        edits=[pb.Edit(attribute="Smiling", strength=1)],
        keep=["Male"] * 1024,
    )
    with connected(server.target) as stub:
        stub.Edit(request)
        request.keep.append("Male")
        with pytest.raises(grpc.RpcError, match="keep has 1025 names; at most 1024"):
            stub.Edit(request)


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
