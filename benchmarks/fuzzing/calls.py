"""Hypothesis strategies of calls: good messages, messages with fields that aren't, bytes that hardly are any."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

from engine.bundle import Manifest
from fuzzing.files import bomb_files, picture_files
from protos import dfcvae_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["LatentEngine"]
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
METHODS = {f"/{SERVICE.full_name}/{method.name}": method for method in SERVICE.methods}
STREAMS = (f"/{SERVICE.full_name}/EditStream", REFLECTION)
UNARY = (*(path for path in METHODS if path not in STREAMS), HEALTH)
ABSENT = (f"/{SERVICE.full_name}/Fly", f"/{SERVICE.full_name}/", "/dfcvae.v2.LatentEngine/Edit", "/a/b/c", "/")
LONG_S = 60.0
"""Deadline of requests that aren't about deadlines; one that isn't answered by then counts as hung."""

_UNSIGNED = (0, 1, 2, 3, 100, 101, 1024, 1025, 65_536, 2**31 - 1, 2**31, 2**32 - 1)
_FLOATS = (0.0, -0.0, 1.0, -3.5, 10.5, 1e-45, 1e30, -3e38, float("nan"), float("inf"), -float("inf"))
_METADATA: tuple[tuple[tuple[str, str | bytes], ...], ...] = (
    (("x-request-id", "a" * 200),),
    (("x-request-id", "a{}%s\\n'\"<>"),),
    (("x-request-id", "fine-1"), ("x-request-id", "fine-2")),
    (("x-request-id", ""),),
    (("x-request-id-bin", bytes(range(256))),),
    (("authorization", "Bearer"), ("authorization", "Basic " + "z" * 3000)),
    (("traceparent", "00-zz-zz-01"), ("tracestate", "," * 500)),
    (("a" * 300, "b" * 3000),),
    (("grpc-trace-bin", b"\xff" * 40), ("grpc-tags-bin", b"\0" * 40)),
    tuple((f"key-{number}", "value") for number in range(60)),
)

Mutation = Callable[[bytes], bytes]
_MUTATIONS: tuple[Mutation, ...] = (
    lambda data: data + data,
    lambda data: data + b"\xff" * 11,
    lambda data: data + b"\x9a\x06\x04spam",  # field 99
    lambda data: data + b"\x0b" * 101,  # groups in groups
    lambda data: data + b"\x0b" * 5000,
    lambda data: b"\x0a\xff\xff\xff\xff\x0f" + data,  # a field of 4 GiB
    lambda data: data + b"\x0a" + b"\x80" * 10 + b"\x01",  # a number of eleven bytes
    lambda data: data + b"\x72\x02\xff\xfe",  # model, which isn't UTF-8
    lambda data: data + b"\x1a\x00" * 4000,  # edits without anything
    lambda data: bytes([data[0] ^ 2]) + data[1:] if data else b"\7",  # another type
)


def _splice(where: float, cut: int, put: bytes) -> Mutation:
    def mutate(data: bytes) -> bytes:
        at = int(where * len(data))
        return data[:at] + put + data[at + cut :]

    return mutate


_SPLICES = st.builds(
    _splice, st.floats(0, 1), st.sampled_from([0, 1, 1, 2, 4, 16, 10**6]), st.just(b"") | st.binary(max_size=16)
)
MUTATIONS = st.one_of(
    _SPLICES,
    st.lists(_SPLICES, min_size=2, max_size=4).map(
        lambda many: lambda data: functools.reduce(lambda now, mutate: mutate(now), many, data)
    ),
    st.sampled_from(_MUTATIONS),
    st.binary(max_size=100).map(lambda junk: lambda _: junk),
)
"""What changes the bytes of a message or a file."""


class Case(NamedTuple):
    """One call."""

    path: str  # the method, for example "/dfcvae.v1.LatentEngine/Edit"
    bodies: tuple[bytes, ...]  # bytes of its messages: one, or for streams any number
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    timeout_s: float = LONG_S
    cancel_s: float | None = None  # when the client gives the call up; None: never

    @property
    def name(self) -> str:
        """The method in tables."""
        return self.path.rpartition("/")[2] if self.path in (*UNARY, *STREAMS) else "no such method"


class Messages:
    """Strategies of the messages of `dfcvae.v1`, for the model that is served."""

    def __init__(self, manifest: Manifest) -> None:
        size, dim = manifest.image_size, manifest.latent_dim
        image, latent = size**2 * 3, dim * 4
        side = manifest.preprocessing.crop or size
        pictures = (*picture_files(side), *picture_files(side - 1))
        file = st.sampled_from(pictures * 4 + bomb_files(10_000))
        self._files = file | st.builds(lambda data, mutate: mutate(data), file, MUTATIONS)
        self._names = st.sampled_from(manifest.attributes)
        odd_bytes = [bytes(n) for n in (latent, latent - 1, latent + 1, 2 * latent, image, image + 1)]
        odd_bytes += [np.full(dim, value, "<f4").tobytes() for value in (*_FLOATS, 0.5)]
        numbers = (dim, size, *_UNSIGNED)
        odd_text = ["", "default", "Smiling\0", "%s%n{0}", "x" * 5000, "\u202e\ud7ff"]
        self._scalars: dict[int, st.SearchStrategy[Any]] = {
            Field.TYPE_UINT32: st.sampled_from(numbers) | st.integers(0, 2**32 - 1),
            Field.TYPE_UINT64: st.sampled_from([*numbers, 2**63, 2**64 - 1]),
            Field.TYPE_FLOAT: st.sampled_from(_FLOATS) | st.floats(width=32),
            Field.TYPE_ENUM: st.sampled_from([-(2**31), -1, 0, 1, 2, 3, 4, 5, 9, 2**31 - 1]),
            Field.TYPE_STRING: self._names | st.sampled_from(odd_text) | st.text(max_size=20),
            Field.TYPE_BYTES: st.sampled_from(odd_bytes) | st.binary(max_size=24),
        }
        self._images = st.integers(1, 3).map(
            lambda n: pb.ImageBatch(raw=pb.RawImages(count=n, height=size, width=size, data=bytes(n * image)))
        ) | st.lists(self._files, min_size=1, max_size=2).map(
            lambda files: pb.ImageBatch(files=pb.EncodedImages(files=files))
        )
        self._latents = st.builds(
            lambda n, value: pb.LatentBatch(count=n, dim=dim, data=np.full(n * dim, value, "<f4").tobytes()),
            st.integers(1, 3),
            st.sampled_from([0.0, 0.5, -2.0, 3e38]),
        )
        self._anything = functools.cache(self._with_one_field)

    def requests(self, path: str) -> st.SearchStrategy[Message]:
        """Requests of a method: good ones, and such with a few fields that may be anything."""
        kind = METHODS[path].input_type
        good = st.builds(GetMessageClass(kind), **self._good(path.rpartition("/")[2]))
        changes = st.sampled_from([0, 0, 1, 1, 1, 2, 4]).flatmap(
            lambda n: st.lists(self._anything(kind), min_size=n, max_size=n)
        )

        def merged(message: Message, others: list[Message]) -> Message:
            for other in others:
                message.MergeFrom(other)
            return message

        return st.builds(merged, good, changes) if kind.fields else good

    def _good(self, method: str) -> dict[str, st.SearchStrategy[Any]]:
        """What fits into the fields of a method's request."""
        output = st.builds(pb.ImageOutput, format=st.sampled_from([0, 0, 1, 2, 3, 4]))
        end = st.builds(pb.WalkEnd, images=self._images) | st.builds(pb.WalkEnd, latents=self._latents)
        edit = st.builds(pb.Edit, attribute=self._names, strength=st.sampled_from([0.0, 1.0, -2.5]))
        edits = {
            "edits": st.lists(edit, min_size=1, max_size=3),
            "keep": st.lists(self._names, max_size=2),
            "output": output,
            "images": st.none() | self._images,  # a source too few or too many is an error, but for the stream
            "latents": st.none() | st.none() | self._latents,
        }
        good: dict[str, dict[str, st.SearchStrategy[Any]]] = {
            "Encode": {"images": self._images},
            "Decode": {"latents": self._latents, "output": output},
            "Edit": edits,
            "EditStream": edits,
            "Interpolate": {
                "start": end, "end": end, "steps": st.sampled_from([2, 3, 9]), "walk": st.sampled_from([0, 1, 2])
            },
            "Sample": {"count": st.integers(1, 3), "seed": st.integers(0, 2**64 - 1)},
            "GetModel": {},
        }  # fmt: skip
        return good[method]

    def _with_one_field(self, descriptor: Descriptor) -> st.SearchStrategy[Message]:
        """Messages with one field, in whose messages one field is set again."""
        kind = GetMessageClass(descriptor)
        fields = [
            self._values(field).map(lambda value, name=field.name: kind(**{name: value}))  # type: ignore[misc]
            for field in descriptor.fields
        ]
        return st.one_of(st.just(kind()), *fields)

    def _values(self, field: Field) -> st.SearchStrategy[Any]:
        if field.message_type is not None:
            one: st.SearchStrategy[Any] = st.deferred(lambda: self._anything(field.message_type))
        else:
            one = self._files if field.name == "files" else self._scalars[field.type]
        if not field.is_repeated:
            return one
        small = one.filter(lambda value: not isinstance(value, bytes | str) or len(value) < 20)
        return st.lists(one, min_size=1, max_size=2) | st.builds(
            lambda value, times: [value] * times, small, st.sampled_from([9, 3000])
        )


def calls(manifest: Manifest, variants: int) -> st.SearchStrategy[tuple[Case, ...]]:
    """Calls of one kind: one that is drawn from the descriptions of messages, and `variants` with its bytes mutated."""
    messages = Messages(manifest)
    bodies = {path: messages.requests(path) for path in METHODS}
    bodies[HEALTH] = st.builds(health_pb2.HealthCheckRequest, service=st.text(max_size=9))
    bodies[REFLECTION] = st.builds(
        reflection_pb2.ServerReflectionRequest,
        file_containing_symbol=st.sampled_from([SERVICE.full_name, "no.such"]) | st.text(max_size=9),
    )
    bodies[ABSENT[0]] = bodies[HEALTH]
    paths = st.sampled_from((*UNARY, *STREAMS) * 2 + ABSENT[:1])

    @st.composite
    def drawn(draw: st.DrawFn) -> tuple[Case, ...]:
        path, rare = draw(paths), draw(st.integers(0, 19))
        count = draw(st.integers(0, 4)) if path in STREAMS else 1
        case = Case(
            draw(st.sampled_from(ABSENT)) if path in ABSENT else path,
            tuple(draw(bodies[path]).SerializeToString() for _ in range(count)),
            draw(st.sampled_from(_METADATA)) if rare < 2 else (),
            draw(st.sampled_from([0.0, 1e-6, 0.001, 0.005, 0.02])) if rare == 2 else LONG_S,
            draw(st.sampled_from([0.0, 0.001, 0.005])) if rare == 3 else None,
        )
        mutations = [draw(MUTATIONS) for _ in range(variants)]
        return case, *(case._replace(bodies=tuple(map(mutation, case.bodies))) for mutation in mutations)

    return drawn()
