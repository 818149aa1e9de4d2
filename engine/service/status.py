"""Domain errors as gRPC statuses with details of google.rpc, which programs can read."""

import logging
from typing import NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from engine.errors import FAILED, EngineError, InvalidRequest, OutOfMemory

logger = logging.getLogger(__name__)

DOMAIN = "dfcvae.v1"
"""Domain of the reasons in ErrorInfo."""

# Headers hold 8 KiB; the sentence travels as status message, in the details, and up to three bytes for each of its own.
_MAX_SENTENCE_BYTES = 1000


class RpcStatus(NamedTuple):
    """What a call is ended with."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, bytes | str], ...]  # metadata with the details


def rpc_status_of(error: EngineError, request_id: str) -> RpcStatus:
    """The status of an error, with its details.

    These are what is wrong where (BadRequest), when to try again (RetryInfo), why (ErrorInfo), and the id of the
    request (RequestInfo).
    """
    message = truncated(str(error))
    code = grpc.StatusCode[error.status]
    status = status_pb2.Status(code=code.value[0], message=message)
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=truncated(error.field), description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(max(1, round(error.retry_after_s * 1000)))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    status.details.add().Pack(error_details_pb2.RequestInfo(request_id=request_id))
    details = ("grpc-status-details-bin", status.SerializeToString())
    return RpcStatus(code, message, (details, ("x-request-id", request_id)))


def domain_error(error: Exception, method: str) -> EngineError:
    """The error that a client is told of; the log has the trace of what nobody raised on purpose."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, DecodeError):
        return InvalidRequest("the request is not a message of this method; use the service's own .proto")
    logger.error("%s failed", method, exc_info=error)
    if isinstance(error, MemoryError):
        return OutOfMemory("the server has too little memory for this request; send again after a pause, or less", 1.0)
    return EngineError(FAILED)


def truncated(sentence: str) -> str:
    """A sentence of at most a thousand bytes, without its middle where it is longer."""
    data = sentence.encode("utf-8", "replace")
    if len(data) <= _MAX_SENTENCE_BYTES:
        return data.decode()
    half = _MAX_SENTENCE_BYTES // 2
    return f"{data[:half].decode(errors='ignore')} ... {data[-half:].decode(errors='ignore')}"
