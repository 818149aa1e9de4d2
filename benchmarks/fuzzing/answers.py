"""Sends calls as bytes that no client library has looked at, and says what isn't clean about their answers.

Clean is a documented status, details that parse, and nothing of the server's insides.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from fuzzing.calls import LONG_S, METHODS, STREAMS, UNARY, Case
from protos import dfcvae_pb2 as pb

_DOCUMENTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
_DETAILS = {
    f"google.rpc.{name}": getattr(error_details_pb2, name)
    for name in ("BadRequest", "RetryInfo", "ErrorInfo", "RequestInfo")
}
_LONGEST = 1_100
# Digits alone may be of an image's size, 0x1195524376, unless there are as many as an address has.
_SECRETS = re.compile(
    r"Traceback|File \"|\.pyc?\b|site-packages|<class|object at 0x|0x(?=\d*[a-f])[0-9a-f]{6,}|0x\d{11,}|"
    r"(?:/[\w.@-]+){2,}|"
    r"\b(?:engine|google|PIL|numpy|grpc|asyncio|onnxruntime|openvino)\.\w+|\bself\b|\b[A-Z]\w+(?:Error|Exception)\b"
)
_TRACES = re.compile(r"^(.*)\nTraceback", re.MULTILINE)
# What grpc.aio says by itself of a stream that the server has ended while it was writing; it doesn't say how.
_CLIENT_FAILED = "Internal error from Core"
_GRACE_S = 30.0  # beyond a call's deadline; then it counts as hung


class Outcome(NamedTuple):
    """How a call ended."""

    status: str  # name of its status
    message: str = ""  # what it says
    details: bytes | None = None  # the trailing metadata's "grpc-status-details-bin"; None where there is none
    answers: tuple[bytes, ...] = ()  # messages that came back


async def send(channel: grpc.aio.Channel, case: Case) -> Outcome:
    """Makes one call."""
    options: dict[str, Any] = {"timeout": case.timeout_s, "metadata": case.metadata}
    streams = case.path in STREAMS
    if streams:
        call = channel.stream_stream(case.path)(iter(case.bodies), **options)
    else:
        call = channel.unary_unary(case.path)(case.bodies[0], **options)
    giving_up = None
    if case.cancel_s is not None:
        giving_up = asyncio.get_running_loop().call_later(case.cancel_s, call.cancel)
    answers: list[bytes] = []

    async def read() -> None:
        if not streams:
            answers.append(await call)
            return
        async for answer in call:
            answers.append(answer)

    try:
        await asyncio.wait_for(read(), case.timeout_s + _GRACE_S)
        status, message, trailing = await call.code(), await call.details(), await call.trailing_metadata()
    except grpc.aio.AioRpcError as error:
        if error.details() == _CLIENT_FAILED and len(case.bodies) > 1:
            return await send(channel, case._replace(bodies=case.bodies[:-1]))
        if error.details() == _CLIENT_FAILED and case.timeout_s < LONG_S:
            return Outcome("DEADLINE_EXCEEDED", answers=tuple(answers))
        status, message, trailing = error.code(), error.details(), error.trailing_metadata()
    except asyncio.CancelledError:
        return Outcome("CANCELLED", answers=tuple(answers))
    except asyncio.TimeoutError:
        return Outcome("HUNG", answers=tuple(answers))
    finally:
        if giving_up:
            giving_up.cancel()
    return Outcome(status.name, message or "", dict(trailing or ()).get("grpc-status-details-bin"), tuple(answers))


def faults(case: Case, outcome: Outcome) -> Iterator[str]:
    """What isn't clean about an answer."""
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
    for answer in outcome.answers if case.path in METHODS else ():
        yield from _faults_of_answer(case, answer)
    if case.path in UNARY and (outcome.status == "OK") != (len(outcome.answers) == 1):
        yield f"{len(outcome.answers)} answers with status {outcome.status}"
    if len(outcome.answers) > len(case.bodies):
        yield f"{len(outcome.answers)} answers to {len(case.bodies)} requests"


def leaked(message: str, bodies: tuple[bytes, ...]) -> str | None:
    """A part of a message that tells of the server's code or files, unless the client had sent it."""
    found = (secret.group() for secret in _SECRETS.finditer(message))
    return next((secret for secret in found if not any(secret.encode() in body for body in bodies)), None)


def traces(log: str) -> list[str]:
    """What a server's log says before each of its tracebacks, and how often."""
    causes = Counter(re.sub(r"^[\d :,-]+|\[[\w-]+\] (?=\w)|0x\w+", "", one)[:160] for one in _TRACES.findall(log))
    return [f"the server's log has {times} traces after: {cause}" for cause, times in causes.most_common(10)]


def _faults_of_details(case: Case, outcome: Outcome) -> Iterator[str]:
    if outcome.details is None:
        if outcome.status in ("INVALID_ARGUMENT", "NOT_FOUND") and case.path in METHODS:
            yield "no details"
        return
    try:
        status = status_pb2.Status.FromString(outcome.details)
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
    try:
        message: Any = GetMessageClass(METHODS[case.path].output_type).FromString(answer)
    except DecodeError:
        yield "the answer is no message"
        return
    if isinstance(message, pb.EditStreamResponse) and message.HasField("error"):
        codes, said = {code.value[0]: code.name for code in grpc.StatusCode}, message.error.message
        allowed = _DOCUMENTED - {"OK"} | ({"DEADLINE_EXCEEDED"} if case.timeout_s < LONG_S else set())
        if codes.get(message.error.code) not in allowed:
            yield f"a request of the stream has status {codes.get(message.error.code)}"
        if secret := leaked(said, case.bodies):
            yield f"the message of a request of the stream gives away {secret!r}"
        if len(said) > _LONGEST:
            yield f"the message of a request of the stream has {len(said)} characters"
