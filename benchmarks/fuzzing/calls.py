"""Hypothesis strategies of calls: messages, bytes that hardly are any, metadata, deadlines, clients that give up."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from engine.serving.service import SERVICE_NAME
from fuzzing.cases import ABSENT, HEALTH, LONG_S, STREAMS, UNARY, Case, Facts
from fuzzing.messages import Messages, spoilt

_TRICKS: tuple[Callable[[bytes, Random], bytes], ...] = (
    spoilt,
    spoilt,
    lambda data, random: data[: random.randrange(len(data) + 1)],
    lambda data, random: data + data,
    lambda data, random: data + bytes([random.randrange(256)]) * random.choice((1, 2, 11, 5000)),
    lambda data, random: data + b"\x9a\x06\x04spam",  # field 99
    lambda data, random: data + b"\x0b" * random.choice((1, 99, 101, 5000)),  # groups in groups
    lambda data, random: b"\x0a\xff\xff\xff\xff\x0f" + data,  # a field of 4 GiB
    lambda data, random: data + b"\x0a" + b"\x80" * 10 + b"\x01",  # a number of eleven bytes
    lambda data, random: data + b"\x72\x02\xff\xfe",  # model, which isn't UTF-8
    lambda data, random: data + b"\x1a\x00" * 4000,  # edits without anything
    lambda data, random: bytes([data[0] ^ 1 << random.randrange(3)]) + data[1:] if data else b"\7",  # another type
    lambda data, random: random.randbytes(random.choice((1, 10, 100, 5000))),
)
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


class Calls:
    """Draws calls.

    Args:
        facts: What good requests need.
    """

    def __init__(self, facts: Facts) -> None:
        messages = Messages(facts)
        prefix = f"/{SERVICE_NAME}/"
        names = [path.removeprefix(prefix) for path in (*UNARY, *STREAMS) if path.startswith(prefix)]
        self._messages: dict[str, st.SearchStrategy[Any]] = {name: messages.requests(name) for name in names}
        self._messages["Check"] = st.builds(health_pb2.HealthCheckRequest, service=st.text(max_size=9))
        self._messages["ServerReflectionInfo"] = st.builds(
            reflection_pb2.ServerReflectionRequest,
            file_containing_symbol=st.sampled_from([SERVICE_NAME, HEALTH, "no.such"]) | st.text(max_size=9),
        )

    def draw(self, count: int, number: int) -> list[Case]:
        """Draws calls, all different; somewhat fewer than `count`, since Hypothesis repeats itself.

        Args:
            count: How many.
            number: Seed.
        """
        cases: dict[Case, None] = {}

        @seed(number)
        @settings(
            max_examples=count,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(self._case())
        def collect(case: Case) -> None:
            cases[case] = None

        collect()
        return list(cases)

    def _case(self) -> st.SearchStrategy[Case]:
        paths = st.sampled_from([*UNARY, *UNARY, *STREAMS, *STREAMS, ABSENT[0]])
        absent, counts, rarely = st.sampled_from(ABSENT), st.integers(0, 4), st.integers(0, 19)
        metadata = st.sampled_from(_METADATA)
        timeouts, patience = st.sampled_from([0.0, 1e-6, 0.001, 0.005, 0.02]), st.sampled_from([0.0, 0.001, 0.005])
        bodies = {path: self._bodies(path.rpartition("/")[2]) for path in (*UNARY, *STREAMS, ABSENT[0])}

        @st.composite
        def case(draw: st.DrawFn) -> Case:
            path = draw(paths)
            messages = tuple(draw(bodies[path]) for _ in range(draw(counts) if path in STREAMS else 1))
            rare = draw(rarely)
            return Case(
                draw(absent) if path in ABSENT else path,
                messages,
                draw(metadata) if rare < 2 else (),
                draw(timeouts) if rare == 2 else LONG_S,
                draw(patience) if rare == 3 else None,
            )

        return case()

    def _bodies(self, method: str) -> st.SearchStrategy[bytes]:
        messages = self._messages.get(method, st.just(health_pb2.HealthCheckRequest()))
        kinds, tricks, numbers = st.integers(0, 2), st.sampled_from(_TRICKS), st.integers(0, 2**32)

        @st.composite
        def body(draw: st.DrawFn) -> bytes:
            data: bytes = draw(messages).SerializeToString()
            return draw(tricks)(data, Random(draw(numbers))) if draw(kinds) == 0 else data

        return body()


def mutant(case: Case, random: Random) -> Case:
    """The same call with the bytes of its messages spoilt."""
    return case._replace(bodies=tuple(random.choice(_TRICKS)(body, random) for body in case.bodies))
