"""Hypothesis strategies of request messages: good ones, and good ones with fields that aren't."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from hypothesis import strategies as st

from engine.serving.service import SERVICE_NAME
from fuzzing.cases import Facts
from fuzzing.files import bomb_files, picture_files
from protos import dfcvae_pb2 as pb

_BOMB_WEIGHT = 10_000
_PICTURES_PER_BOMB = 4
_UNSIGNED = (0, 1, 2, 3, 100, 101, 1024, 1025, 65_536, 2**31 - 1, 2**31, 2**32 - 1)
_FLOATS = (0.0, -0.0, 1.0, -3.5, 10.5, 1e-45, 1e30, -3e38, float("nan"), float("inf"), -float("inf"))
_ENUMS = (-(2**31), -1, 0, 1, 2, 3, 4, 5, 9, 2**31 - 1)
_MOST_NAMES = 3000
_MOST_BYTES = 50_000
_HOW_MANY = st.sampled_from([0, 1, 1, 1, 2, 4])
_HOW_OFTEN = st.sampled_from([0, 1, 1, 2, 2, 9, _MOST_NAMES])
_ACTIONS = st.sampled_from(["deeper", "deeper", "deeper", "clear", "set"])


class Messages:
    """Strategies of the messages of `dfcvae.v1`.

    Args:
        facts: What good requests need.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        latent, image = facts.latent_dim * 4, facts.image_bytes
        pictures = (*picture_files(facts.file_side), *picture_files(facts.file_side - 1))
        files = pictures * _PICTURES_PER_BOMB + bomb_files(_BOMB_WEIGHT)
        numbers = (facts.latent_dim, facts.image_size, *_UNSIGNED)
        self._files = st.sampled_from(files) | st.builds(
            lambda file, number: spoilt(file, Random(number)), st.sampled_from(files), st.integers(0, 2**32)
        )
        values = (*_FLOATS, 0.5)
        self._bytes = (
            st.sampled_from([bytes(size) for size in (latent, latent - 1, latent + 1, 2 * latent, image, image + 1)])
            | st.sampled_from([np.full(facts.latent_dim, value, "<f4").tobytes() for value in values])
            | st.binary(max_size=24)
        )
        self._text = st.one_of(
            st.sampled_from([*facts.attributes, "", "default", "Smiling\0", "%s%n{0}", "x" * 5000, "\u202e\ud7ff"]),
            st.text(max_size=20),
        )
        self._scalars: dict[int, st.SearchStrategy[Any]] = {
            Field.TYPE_UINT32: st.sampled_from(numbers) | st.integers(0, 2**32 - 1),
            Field.TYPE_UINT64: st.sampled_from([*numbers, 2**63, 2**64 - 1]),
            Field.TYPE_FLOAT: st.sampled_from(_FLOATS) | st.floats(width=32),
            Field.TYPE_ENUM: st.sampled_from(_ENUMS),
            Field.TYPE_STRING: self._text,
            Field.TYPE_BYTES: self._bytes,
        }

    def requests(self, method: str) -> st.SearchStrategy[Message]:
        """Requests of a method of the service, some of them good."""
        good = {
            "Encode": st.builds(pb.EncodeRequest, images=self._images()),
            "Decode": st.builds(pb.DecodeRequest, latents=self._latents(), output=self._outputs()),
            "Edit": st.one_of(self._edits(pb.EditRequest, {"images": self._images()}), self._edits(pb.EditRequest)),
            "EditStream": st.one_of(
                self._edits(pb.EditStreamRequest, {"images": self._images()}),
                self._edits(pb.EditStreamRequest),
                self._edits(pb.EditStreamRequest, {}),
            ),
            "Interpolate": st.builds(
                pb.InterpolateRequest,
                start=self._ends(),
                end=self._ends(),
                steps=st.sampled_from([2, 3, 9]),
                walk=st.sampled_from([0, 1, 2]),
            ),
            "Sample": st.builds(pb.SampleRequest, count=st.integers(1, 3), seed=st.integers(0, 2**64 - 1)),
            "GetModel": st.just(pb.GetModelRequest()),
        }
        assert set(good) == {one.name for one in pb.DESCRIPTOR.services_by_name[SERVICE_NAME.split(".")[-1]].methods}
        return self._altered(good[method])

    def _altered(self, good: st.SearchStrategy[Message]) -> st.SearchStrategy[Message]:
        @st.composite
        def altered(draw: st.DrawFn) -> Message:
            message = draw(good)
            for _ in range(draw(_HOW_MANY)):
                self._alter(draw, message)
            return message

        return altered()

    def _alter(self, draw: st.DrawFn, message: Message) -> None:
        """Gives some field, at any depth, some value that its type allows."""
        field = draw(_fields(message.DESCRIPTOR))
        if field.message_type is None:
            values = self._files if field.name == "files" else self._scalars[field.type]
            if field.is_repeated:
                many = draw(_HOW_OFTEN)
                value = draw(values)
                getattr(message, field.name).extend([value] * min(many, 1 + _MOST_BYTES // (len(value) + 1)))
            else:
                setattr(message, field.name, draw(values))
            return
        inner = getattr(message, field.name)
        action = draw(_ACTIONS)
        if action == "clear":
            message.ClearField(field.name)
        elif field.is_repeated:
            for _ in range(draw(_HOW_OFTEN) + 1 if action == "set" else 1):
                inner.add()
            self._alter(draw, inner[0])
        elif action == "deeper":
            self._alter(draw, inner)
        else:
            inner.SetInParent()

    def _latents(self) -> st.SearchStrategy[pb.LatentBatch]:
        dim = self._facts.latent_dim

        def batch(count: int, value: float) -> pb.LatentBatch:
            return pb.LatentBatch(count=count, dim=dim, data=np.full(count * dim, value, "<f4").tobytes())

        return st.builds(batch, st.integers(1, 3), st.sampled_from([0.0, 0.5, -2.0, 3e38]))

    def _images(self) -> st.SearchStrategy[pb.ImageBatch]:
        side = self._facts.image_size

        def raw(count: int) -> pb.ImageBatch:
            data = bytes(count * self._facts.image_bytes)
            return pb.ImageBatch(raw=pb.RawImages(count=count, height=side, width=side, data=data))

        def encoded(files: list[bytes]) -> pb.ImageBatch:
            return pb.ImageBatch(files=pb.EncodedImages(files=files))

        return st.builds(raw, st.integers(1, 3)) | st.builds(encoded, st.lists(self._files, min_size=1, max_size=2))

    def _outputs(self) -> st.SearchStrategy[pb.ImageOutput]:
        return st.builds(pb.ImageOutput, format=st.sampled_from([0, 0, 1, 2, 3, 4]))

    def _ends(self) -> st.SearchStrategy[pb.WalkEnd]:
        return st.builds(pb.WalkEnd, images=self._images()) | st.builds(pb.WalkEnd, latents=self._latents())

    def _edits(self, kind: Any, source: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
        names = st.sampled_from(self._facts.attributes)
        edit = st.builds(pb.Edit, attribute=names, strength=st.sampled_from([0.0, 1.0, -2.5]))
        fields = {"latents": self._latents()} if source is None else source
        return st.builds(
            kind,
            edits=st.lists(edit, min_size=1, max_size=3),
            keep=st.lists(names, max_size=2),
            output=self._outputs(),
            **fields,
        )


@cache
def _fields(descriptor: Descriptor) -> st.SearchStrategy[Field]:
    return st.sampled_from(list(descriptor.fields))


def spoilt(data: bytes, random: Random) -> bytes:
    """Bytes with a few of them changed, cut out, put in or repeated."""
    spoiled = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        start = random.randrange(len(spoiled) + 1)
        stop = min(len(spoiled), start + random.choice((1, 2, 4, 16, 10**6)))
        match random.randrange(6):
            case 0:
                spoiled[start:stop] = random.randbytes(min(stop - start, 16))
            case 1:
                del spoiled[start:stop]
            case 2:
                spoiled[start:start] = random.randbytes(random.choice((1, 4, 16)))
            case 3:
                spoiled[start:start] = spoiled[start:stop]
            case 4:
                spoiled[start:stop] = random.choice((b"\0", b"\xff", b"\x80")) * min(stop - start, 16)
            case _:
                spoiled[start : start + 1] = bytes(
                    byte ^ 1 << random.randrange(8) for byte in spoiled[start : start + 1]
                )
    return bytes(spoiled)
