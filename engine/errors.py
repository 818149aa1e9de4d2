"""The domain errors of the engine: one small tree, no transport in it.

Every error carries a sentence for the person who reads it: what was wrong, with which value, and how to
mend it. `engine.interceptor` is the one place that turns the tree into gRPC statuses.
"""


class EngineError(Exception):
    """Base of everything that the engine raises on purpose.

    Attributes:
        status: Name of the gRPC status code that a client sees.
    """

    status = "INTERNAL"


class StartupError(EngineError):
    """Raise when the server can't start with what it was given; never reaches a client."""


class BundleError(StartupError):
    """Raise when a bundle folder is missing, damaged, or doesn't fit this engine."""


class BackendError(StartupError):
    """Raise when the runtime that a bundle asks for isn't installed or can't be used."""


class DirectionsError(EngineError):
    """Raise when a directions file is missing, damaged, or contradicts itself."""


class InvalidRequest(EngineError):  # noqa: N818 - reads better without the suffix at the place of the raise
    """Raise when a request is malformed; sending it again unchanged can't help."""

    status = "INVALID_ARGUMENT"


class UnknownAttribute(EngineError):  # noqa: N818
    """Raise when a request names an attribute that this model has no direction for."""

    status = "NOT_FOUND"


class Overloaded(EngineError):  # noqa: N818
    """Raise at once when the queue has no room for a request; sending it again later helps."""

    status = "RESOURCE_EXHAUSTED"


class DeadlinePassed(EngineError):  # noqa: N818
    """Raise when a request's deadline has passed before its compute began."""

    status = "DEADLINE_EXCEEDED"


class ShuttingDown(EngineError):  # noqa: N818
    """Raise when a request arrives after the server began to stop; another server can take it."""

    status = "UNAVAILABLE"


class ComputeFailed(EngineError):  # noqa: N818
    """Raise when the backend failed on a batch; the trace stays in the server's log."""
