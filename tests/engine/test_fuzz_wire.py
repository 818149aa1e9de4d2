"""Requests that are cheap to send and dear to read are refused before they are read."""

from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from serving.requests import file_batch
from tiny_model import LATENT_DIM

from engine.bundle import Bundle
from engine.errors import InvalidRequest
from engine.service.request_parser import RequestParser
from engine.service.zero_copy import parser
from protos import dfcvae_pb2 as pb

parse = parser(pb.EditRequest)


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
    files = pb.EditRequest(images=file_batch([bytes(500)] * 1024))
    assert parse(files.SerializeToString()) == files


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


def test_millions_of_kept_names_are_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    reader = RequestParser(bundle.manifest, bundle.directions, 1024)
    edits = [pb.Edit(attribute="Smiling", strength=1)]
    with pytest.raises(InvalidRequest, match="keep has 1025 names; at most 1024"):
        reader.move(edits, ["Male"] * 1025)
    assert reader.move(edits, ["Male"] * 1024).step.shape == (LATENT_DIM,)
