"""Requests that are cheap to send and dear to read are refused before they are read."""

import time

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import ATTRIBUTES, IMAGE_SIZE, LATENT_DIM, tiny_directions

from engine.bundle import FORMAT_VERSION, Engine, Manifest, Preprocessing
from engine.errors import InvalidRequest
from engine.service.request_parser import RequestParser
from engine.service.zero_copy import parser
from protos import dfcvae_pb2 as pb

EMPTY_EDIT, EMPTY_GROUP = b"\x1a\x00", b"\x0b\x0c"
parse = parser(pb.EditRequest)


def reader() -> RequestParser:
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        image_size=IMAGE_SIZE,
        latent_dim=LATENT_DIM,
        preprocessing=Preprocessing(None),
        attributes=ATTRIBUTES,
        kinds=(),
        backend="onnxruntime",
        device="cpu",
        precision="fp32",
        engine=Engine(),
        max_batch_size=4,
        files={},
        parity={},
        versions={},
        run={},
    )
    return RequestParser(manifest, tiny_directions(), 1024)


@pytest.mark.parametrize("start", [b"", EMPTY_GROUP, b"\x08\x80\x00", b"\x09" + bytes(8), b"\x0d" + bytes(4)])
def test_millions_of_fields_are_refused_before_they_become_objects(start: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InvalidRequest, match="more than 16384 fields"):
        parse(start + EMPTY_EDIT * 5_000_000)
    assert time.process_time() - started < 1, "protobuf takes longer"


def test_large_requests_are_read_as_protobuf_does() -> None:
    request = pb.EditRequest(
        images=pb.ImageBatch(raw=pb.RawImages(count=2, height=300, width=300, data=bytes(540_000))),
        edits=[pb.Edit(attribute="Male", strength=1)] * 1024,
        keep=["Smiling"] * 1024,
        output=pb.ImageOutput(format=pb.IMAGE_FORMAT_JPEG),
    )
    data = request.SerializeToString()
    found = parse(data)
    assert (found.edits, found.keep, found.output) == (request.edits, request.keep, request.output)
    assert (found.images.WhichOneof("images"), found.images.raw.data) == ("raw", request.images.raw.data)
    files = pb.EditRequest(images=pb.ImageBatch(files=pb.EncodedImages(files=[bytes(500)] * 1024)))
    assert parse(files.SerializeToString()) == files


def test_raw_pixels_are_not_copied() -> None:
    count = 400
    pixels = np.random.default_rng(0).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    raw = pb.RawImages(count=count, height=IMAGE_SIZE, width=IMAGE_SIZE, data=pixels.tobytes())
    data = pb.EditRequest(images=pb.ImageBatch(raw=raw)).SerializeToString()
    images = reader().source(parse(data))
    assert isinstance(images, np.ndarray)
    assert np.shares_memory(images, np.frombuffer(data, np.uint8))
    np.testing.assert_array_equal(images, pixels)
    raw.count = count - 1
    wrong = pb.EditRequest(images=pb.ImageBatch(raw=raw)).SerializeToString()
    with pytest.raises(InvalidRequest, match=rf"images.raw.data has {pixels.size} bytes; 399 images"):
        reader().source(parse(wrong))


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_are_a_message_or_none(data: bytes, large: bool) -> None:
    # A large field in front makes the bytes pass through the count of fields.
    whole = pb.EditRequest(model="m" * 70_000 if large else "").SerializeToString() + data
    try:
        expected = pb.EditRequest.FromString(whole)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse(whole)
    else:
        assert parse(whole) == expected


def test_millions_of_kept_names_are_refused() -> None:
    edits = [pb.Edit(attribute="Smiling", strength=1)]
    with pytest.raises(InvalidRequest, match="keep has 1025 names; at most 1024"):
        reader().move(edits, ["Male"] * 1025)
    assert reader().move(edits, ["Male"] * 1024).step.shape == (LATENT_DIM,)
