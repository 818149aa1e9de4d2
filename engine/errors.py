"""The domain errors of the engine: one small tree, no transport in it.

Every error carries a sentence for the person who reads it: what was wrong, with which value, and how to
mend it; some say more to programs: the field of the request, or when to try again. `engine.service.status` turns them
into gRPC statuses.
"""

import traceback
from collections.abc import Callable

FAILED = "the server failed on this request; its log has the reason"
"""What clients are told of faults that nobody raised on purpose."""

_LONGEST_PAUSE_S = 30 * 86_400.0  # StreamError counts milliseconds in 32 bits


class EngineError(Exception):
    """Base of everything that the engine raises on purpose."""

    status = "INTERNAL"  # name of the gRPC status that a client sees
    reason = "INTERNAL"  # what happened, for programs: the same words for every error of a kind
    field: str = ""  # path of the request's field that is wrong, for example "edits[0].strength"; "" where none is
    retry_after_s: float | None = None  # when sending the same request again may help; None where it can't

    def __init__(self, message: str = "", field: str = "") -> None:
        super().__init__(message)
        self.field = field or self.field


class StartupError(EngineError):
    """Raise when the server can't start with what it was given; never reaches a client."""


class BundleError(StartupError):
    """Raise when a bundle folder is missing, damaged, or doesn't fit this engine."""


class BackendError(StartupError):
    """Raise when the runtime that a bundle asks for isn't installed or can't be used."""


class ParityError(StartupError):
    """Raise when engines are further from PyTorch than tolerated; the message names stage, figure and tolerance."""


class DirectionsError(EngineError):
    """Raise when a directions file is missing, damaged, or contradicts itself."""


class InvalidRequest(EngineError):  # noqa: N818 - reads better without the suffix at the place of the raise
    """Raise when a request is malformed; sending it again unchanged can't help."""

    status = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"


class InvalidField(InvalidRequest):
    """Raise when one field of a request is wrong: its path, and the fault: "is 0; send one" or ": the file is damaged".

    The sentence begins with the field, and isn't written before it is read: whoever made the request of something else
    sets `field` to where the fault lies there.
    """

    def __init__(self, field: str, fault: str) -> None:
        super().__init__(fault, field)

    def __str__(self) -> str:
        fault = super().__str__()
        return f"{self.field}{fault}" if fault.startswith(":") else f"{self.field} {fault}"


class UnknownAttribute(EngineError):  # noqa: N818
    """Raise when a request names an attribute that this model has no direction for."""

    status = "NOT_FOUND"
    reason = "UNKNOWN_ATTRIBUTE"


class UnknownModel(EngineError):  # noqa: N818
    """Raise when a request names a model that isn't served here."""

    status = "NOT_FOUND"
    reason = "UNKNOWN_MODEL"
    field = "model"


class Unauthenticated(EngineError):  # noqa: N818
    """Raise when the server asks for a token, and a call has none or one that it doesn't know."""

    status = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class Overloaded(EngineError):  # noqa: N818
    """Raise at once when there is no room for a request; sending it again later helps.

    Attributes:
        recheck: Raises again while the smallest request of the same client, behind a number of others, would not fit;
            None: nobody knows.
    """

    status = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"

    def __init__(self, message: str, retry_after_s: float = 0.1, recheck: Callable[[int], None] | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = min(retry_after_s, _LONGEST_PAUSE_S)
        self.recheck = recheck


class RateLimited(Overloaded):
    """Raise when a client has used up its share, whatever room the server has."""

    reason = "RATE_LIMITED"


class OutOfMemory(Overloaded):
    """Raise when the machine has no memory for what a request needs."""

    reason = "OUT_OF_MEMORY"


class DeadlinePassed(EngineError):  # noqa: N818
    """Raise when a request's deadline has passed before its compute began."""

    status = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_PASSED"


class ShuttingDown(EngineError):  # noqa: N818
    """Raise when a request arrives after the server began to stop; another server can take it."""

    status = "UNAVAILABLE"
    reason = "SHUTTING_DOWN"
    retry_after_s = 1.0

    def __init__(self, unanswered: str = "the request") -> None:
        super().__init__(f"the server is shutting down; send {unanswered} to another one")


class StreamIdle(EngineError):  # noqa: N818
    """Raise when a stream's client has been silent for longer than a stream may be; a new stream can take its place."""

    status = "ABORTED"
    reason = "STREAM_IDLE"


class NotReady(EngineError):  # noqa: N818
    """Raise when a request arrives before the server has warmed up."""

    status = "UNAVAILABLE"
    reason = "NOT_READY"
    retry_after_s = 1.0


class ComputeFailed(EngineError):  # noqa: N818
    """Raise when the backend failed on a batch; the trace stays in the server's log."""

    reason = "COMPUTE_FAILED"


def release_frames(error: BaseException) -> None:
    """Lets go of everything that the functions which an error went through held: requests, arrays, futures.

    An error that went through a future is part of a cycle: the future holds the error, its traceback the frames, and a
    frame the future. Whatever the frames hold, a request of many megabytes too, would stay until Python looks for
    cycles. So whoever has dealt with an error, and raises it no further, calls this.
    """
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        one = errors.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            errors += (one.__cause__, one.__context__)
            traceback.clear_frames(one.__traceback__)
            one.__traceback__ = None
