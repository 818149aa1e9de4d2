"""What a clean answer is: a documented status, details that parse, and nothing of the server's insides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from engine.serving.service import SERVICE_NAME
from fuzzing.cases import LONG_S, UNARY, Case
from protos import dfcvae_pb2 as pb

_DOCUMENTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
_DETAILS = {
    f"google.rpc.{name}": getattr(error_details_pb2, name)
    for name in ("BadRequest", "RetryInfo", "ErrorInfo", "RequestInfo")
}
# Behind a digit, 0x may be the middle of an image's size, 24240x1195524376.
_SECRETS = re.compile(
    r"Traceback|File \"|\.pyc?\b|site-packages|<class|object at 0x|(?<!\d)0x[0-9a-f]{6,}|(?:/[\w.@-]+){2,}|"
    r"\b(?:engine|google|PIL|numpy|grpc|asyncio|onnxruntime|openvino)\.\w+|\bself\b|\b[A-Z]\w+(?:Error|Exception)\b"
)
_TRACES = re.compile(r"^(.*)\nTraceback", re.MULTILINE)
_ANSWERS = {
    f"/{SERVICE_NAME}/{method.name}": GetMessageClass(method.output_type)
    for method in pb.DESCRIPTOR.services_by_name["LatentEngine"].methods
}


class Outcome(NamedTuple):
    """How a call ended.

    Attributes:
        status: Name of its status.
        message: What it says.
        trailing: Its trailing metadata.
        answers: Messages that came back.
    """

    status: str
    message: str
    trailing: tuple[tuple[str, str | bytes], ...]
    answers: tuple[bytes, ...]


def faults(case: Case, outcome: Outcome) -> Iterator[str]:
    """What isn't clean about an answer; nothing, when it is as it should be."""
    allowed = set(_DOCUMENTED)
    if case.timeout_s < LONG_S:
        allowed |= {"DEADLINE_EXCEEDED", "CANCELLED"}  # grpc.aio's word for a deadline that is over at the start
    if case.cancel_s is not None:
        allowed.add("CANCELLED")
    if outcome.status not in allowed:
        yield f"status {outcome.status}"
    if secret := leaked(outcome.message, case.bodies):
        yield f"the message gives away {secret!r}"
    yield from _faults_of_details(case, outcome)
    for answer in outcome.answers:
        yield from _faults_of_answer(case, answer)
    if case.path in UNARY and (outcome.status == "OK") != (len(outcome.answers) == 1):
        yield f"{len(outcome.answers)} answers with status {outcome.status}"
    if len(outcome.answers) > len(case.bodies):
        yield f"{len(outcome.answers)} answers to {len(case.bodies)} requests"


def leaked(message: str, bodies: tuple[bytes, ...]) -> str | None:
    """A part of a message that tells of the server's code or files, unless the client had sent it."""
    for found in _SECRETS.finditer(message):
        if not any(found.group().encode() in body for body in bodies):
            return found.group()
    return None


def _faults_of_details(case: Case, outcome: Outcome) -> Iterator[str]:
    data = dict(outcome.trailing).get("grpc-status-details-bin")
    if data is None:
        if outcome.status in ("INVALID_ARGUMENT", "NOT_FOUND") and case.path in _ANSWERS:
            yield "no details"
        return
    status = status_pb2.Status()
    try:
        status.ParseFromString(data)
        for detail in status.details:
            _DETAILS[detail.type_url.rpartition("/")[2]].FromString(detail.value)
    except (DecodeError, KeyError) as error:
        yield f"the details don't parse: {error!r}"
        return
    if outcome.status in ("DEADLINE_EXCEEDED", "CANCELLED"):
        return  # the client's own; the details may still be the server's
    if getattr(grpc.StatusCode, outcome.status).value[0] != status.code or outcome.message != status.message:
        yield f"the details say {status.code}, {status.message!r}; the status says {outcome.message!r}"


def _faults_of_answer(case: Case, answer: bytes) -> Iterator[str]:
    kind: type[Message] | None = _ANSWERS.get(case.path)
    if kind is None:
        return
    try:
        message: Any = kind.FromString(answer)
    except DecodeError:
        yield "the answer is no message"
        return
    if isinstance(message, pb.EditStreamResponse) and message.HasField("error"):
        codes = {code.value[0]: code.name for code in grpc.StatusCode}
        if codes.get(message.error.code) not in _DOCUMENTED - {"OK"}:
            yield f"a request of the stream has status {codes.get(message.error.code)}"
        if secret := leaked(message.error.message, case.bodies):
            yield f"the message of a request of the stream gives away {secret!r}"
        if len(message.error.message) > 1_100:
            yield f"the message of a request of the stream has {len(message.error.message)} characters"


def traces(log: str) -> Iterator[str]:
    """What a server's log says before each of its traces, with how often."""
    causes = Counter(re.sub(r"^[\d :,-]+|\[[\w-]+\] (?=\w)|0x\w+", "", one)[:160] for one in _TRACES.findall(log))
    for cause, times in causes.most_common(10):
        yield f"the server's log has {times} traces after: {cause}"
