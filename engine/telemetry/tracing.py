"""OpenTelemetry spans of calls, where the operator asks for them; the packages are an extra."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from engine.errors import StartupError
from engine.telemetry.metrics import SERVER_ERRORS

SpanEnd = Callable[[str, str, int], None]


class Tracing:
    """Makes a span for each call, below the one that the client names (W3C `traceparent` metadata).

    Names and attributes are those of OpenTelemetry's stable RPC conventions (1.45), and our own `dfcvae.` ones. They go
    to the "console", or to the URL of a collector (OTLP over HTTP); one without a path means /v1/traces.

    Raises:
        StartupError: When the packages aren't installed.
    """

    def __init__(self, destination: str) -> None:
        try:
            from opentelemetry import propagate, trace  # noqa: PLC0415
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter  # noqa: PLC0415
        except ImportError as error:
            raise StartupError(
                f"--traces needs OpenTelemetry, which can't be imported ({error}); pip install 'dfc-vae[traces]'"
            ) from None
        exporter: Any
        if destination == "console":
            exporter = ConsoleSpanExporter()
        else:
            exporter = OTLPSpanExporter(_with_path(destination), timeout=3)
        # Spans leave from a thread, in batches; when the collector is slow, some are dropped and no call waits.
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "dfcvae"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(__name__)
        self._trace, self._extract = trace, propagate.extract

    def start(self, method: str, request_id: str, metadata: Sequence[tuple[str, str | bytes]]) -> SpanEnd:
        """Starts the span of a call of a method, a path; gives what ends it.

        That takes the name of the call's gRPC status, what went wrong, if anything did, and how many images it had.
        """
        name = method.lstrip("/")
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, "dfcvae.request_id": request_id}
        kind, context = self._trace.SpanKind.SERVER, self._extract(carrier)
        return partial(self._end, self._tracer.start_span(name, context=context, kind=kind, attributes=attributes))

    def _end(self, span: Any, status: str, message: str, images: int) -> None:
        span.set_attribute("rpc.response.status_code", status)
        span.set_attribute("dfcvae.images", images)
        if message:
            span.set_attribute("dfcvae.error", message)
        if status in SERVER_ERRORS:
            span.set_attribute("error.type", status)
            span.set_status(self._trace.StatusCode.ERROR, message)
        span.end()

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def _with_path(url: str) -> str:
    parts = urlsplit(url)
    return url if parts.path.strip("/") else parts._replace(path="/v1/traces").geturl()
