"""Calls that fail, and when to send them again."""

import contextlib
import random
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from engine.client.target import proxy_of
from protos import dfcvae_pb2 as pb

# What grpc.aio makes of any failure to write to a stream, whatever the true status.
_BROKEN_WRITE = "Internal error from Core"
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_AUTHORITIES = "tls=FILE, or --tls-ca FILE"
# What BoringSSL and gRPC say of a server's certificate.
_UNTRUSTED = ("self signed certificate", "self-signed certificate", "unable to get local issuer certificate")
_OTHER_NAME = ("Hostname Verification Check failed", "is not in peer certificate")


class FieldViolation(NamedTuple):
    """A field of the request, for example "edits[0].strength", and what is wrong with it."""

    field: str
    description: str


@dataclass(eq=False, repr=False)
class ClientError(Exception):
    """A call that failed."""

    status: str  # name of the gRPC status, for example "INVALID_ARGUMENT"
    message: str  # what the server, or gRPC, said
    violations: tuple[FieldViolation, ...] = ()  # fields that are wrong, where the server names them
    retry_after_s: float | None = None  # when the same request may get an answer; None: waiting doesn't help
    request_id: str | None = None  # of the call in the server's logs, where the server gave one

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"

    @classmethod
    def of_call(cls, error: Any, target: str, unasked: bool) -> "ClientError":
        """From a `grpc.RpcError` of a call to a target, synchronous or not.

        A server that ends cancels calls that reach it too late. So a call that is CANCELLED though this side didn't
        ask for it (`unasked`) was UNAVAILABLE: another server can take it.
        """
        trailer = dict(iter(error.trailing_metadata() or ()))
        violations, retry_after_s = _details(trailer.get("grpc-status-details-bin", b""))
        status, message = error.code().name, error.details() or "no details"
        if (status, message) == ("INTERNAL", _BROKEN_WRITE):
            status, message = "UNAVAILABLE", "the connection broke while a message was being sent"
        elif status == "CANCELLED" and unasked:
            status, message = "UNAVAILABLE", f"the server, or a proxy, cancelled the call ({message})"
        if not trailer:  # The server says more than a status: it had no part in this.
            message = f"{target}: {message}{_hint(target, message) if status == 'UNAVAILABLE' else ''}"
        return cls(status, message, violations, retry_after_s, trailer.get("x-request-id"))

    @classmethod
    def of_answer(cls, error: pb.StreamError) -> "ClientError":
        """From the answer to one request of a stream."""
        return cls(_NAMES.get(error.code, "UNKNOWN"), error.message, (), error.retry_after_ms / 1000 or None)


class RetryBudget:
    """How often, and until when, a call is sent again.

    A server that is UNAVAILABLE is asked `retries` times more, one that is overloaded `retry_overload` times; all tries
    and pauses together take at most `timeout` seconds, None for no limit.
    """

    def __init__(self, retries: int, retry_overload: int, timeout: float | None) -> None:
        self._retries = retries
        self._retry_overload = retry_overload
        self._pause = _FIRST_PAUSE_S
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds that are left for a try."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def pause_after(self, error: ClientError) -> float:
        """Seconds to wait before the next try; raises the error when there is to be none."""
        if error.status == "UNAVAILABLE" and self._retries:
            self._retries -= 1
            pause = self._pause * random.uniform(0.8, 1.2)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
        elif error.status == "RESOURCE_EXHAUSTED" and self._retry_overload and error.retry_after_s is not None:
            self._retry_overload -= 1
            # A little longer than asked, each by another amount: who was refused together should not come back
            # together.
            pause = error.retry_after_s * random.uniform(1.0, 1.5)
        else:
            raise error from None
        remaining = self.remaining()
        if remaining is not None and pause >= remaining:
            raise error from None
        return pause


def _hint(target: str, message: str) -> str:
    """What a person may look for when a target can't be reached."""
    if any(reason in message for reason in _UNTRUSTED):
        return f"; give the certificates of the authorities that signed the server's: {_AUTHORITIES}"
    if any(reason in message for reason in _OTHER_NAME):
        return "; the server's certificate is for other names: call it by one of those"
    if proxy := proxy_of(target):
        return (
            "; {} in the environment sends the call through {}: is a server to be reached from there? "
            "no_proxy=HOST makes an exception"
        ).format(*proxy)
    # Any of these: where a name has several addresses, gRPC tells why one of them failed.
    return (
        "; is a server running there, does it use TLS, "
        f"is its certificate trusted ({_AUTHORITIES}), or does it ask for one?"
    )


def _details(data: bytes) -> tuple[tuple[FieldViolation, ...], float | None]:
    violations: list[FieldViolation] = []
    retry_after_s = None
    bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    with contextlib.suppress(DecodeError):  # of a proxy, perhaps
        for detail in status_pb2.Status.FromString(data).details:
            if detail.Unpack(bad):
                violations += [FieldViolation(one.field, one.description) for one in bad.field_violations]
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return tuple(violations), retry_after_s
