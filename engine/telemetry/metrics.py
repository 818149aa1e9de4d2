"""What the server counts and times, for Prometheus."""

import logging
import platform
import socket
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from engine.errors import StartupError
from engine.process.address import reason_of
from engine.telemetry.scrapes import ScrapeServer
from engine.version import version_here

logger = logging.getLogger(__name__)

SERVER_ERRORS = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))
"""Statuses that say that the server has failed, and not its client, by OpenTelemetry's conventions for gRPC."""

# Doubling, so that a quantile that is read from them is wrong by a factor of 1.4 at most.
_SECONDS = tuple(0.0005 * 2**power for power in range(17))
_IMAGES = tuple(2.0**power for power in range(11))


class Metrics:
    """All figures of one server. Labels are names of methods, statuses, models and graphs only: memory stays flat."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._names: set[str] = set()
        counter = partial(Counter, namespace="dfcvae", registry=self.registry)
        histogram = partial(Histogram, namespace="dfcvae", registry=self.registry)
        self._gauge = partial(Gauge, namespace="dfcvae", registry=self.registry)
        method, status, queue = ["method"], ["method", "code"], ["model", "graph"]
        self.requests = counter("requests", "Calls that have ended, by gRPC status.", status)
        text = "Requests within streams that were answered, by the gRPC status of the error in the answer, or OK."
        self.stream_answers = counter("stream_answers", text, status)
        self.seconds = Histogram(
            "rpc_server_call_duration_seconds",  # and its labels: OpenTelemetry's rpc.server.call.duration
            "From a call's arrival to its end.",
            ["rpc_system_name", "rpc_method", "rpc_response_status_code", "error_type"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = counter("images", "Images and latents that calls asked for.", method)
        text = "Messages that came in; one a call, streams have many."
        self.received_messages = counter("received_messages", text, method)
        self.received_bytes = counter("received_bytes", "Bytes of messages that came in.", method)
        self.sent_bytes = counter("sent_bytes", "Bytes of messages that went out.", method)
        text = "Calls that ended before their message had come: too large, or given up. Not in requests."
        self.unheard = counter("unheard", text, method)
        self.queue_images = self._gauge("queue_images", "Images that wait.", queue)
        text = "From queue to batch, for each request."
        self.queue_waits = histogram("queue_wait_seconds", text, queue, buckets=_SECONDS)
        self.batch_images = histogram("batch_images", "Images in a batch.", queue, buckets=_IMAGES)
        self.compute_seconds = histogram("compute_seconds", "Compute time of a batch.", queue, buckets=_SECONDS)
        self.failed_batches = counter("failed_batches", "Batches that the backend failed on.", queue)
        self._reloads = counter("reloads", "New bundles, by whether they were taken.", ["model", "outcome"])
        versions = {"version": version_here(), "python": platform.python_version(), "grpc": str(grpc.__version__)}
        Info("dfcvae_build", "Versions of the server's software.", registry=self.registry).info(versions)
        self.unknown = self.requests.labels("unknown", "UNIMPLEMENTED").inc
        """Counts a call of a method that the server hasn't got."""

    def method(self, path: str) -> "MethodFigures":
        """The figures of an RPC, by its path; they go by its name, or by the path where another has that name."""
        name = path.rpartition("/")[2]
        name = path if name in self._names else name
        self._names.add(name)
        return MethodFigures(self, path, name)

    def watch(self, model: str, graph: str) -> "QueueFigures":
        """The figures of a graph's queue; those of a new bundle go on where the old one's end."""
        return QueueFigures(self, model, graph)

    def reloaded(self, model: str, taken: bool) -> None:
        """Counts a new bundle."""
        self._reloads.labels(model, "taken" if taken else "refused").inc()

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a figure that is asked for at each scrape, from another thread."""
        self._gauge(name, text).set_function(value)

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answers scrapes over HTTP, from a thread of its own; gives a function that ends it. Port 0 picks a free one.

        Raises:
            StartupError: When the address can't be used.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]  # times beside figures, which nobody reads
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            server = ScrapeServer(family, (str(address[0]), int(address[1])), self.registry)
        except (OSError, UnicodeError) as error:
            raise StartupError(
                f"can't listen on {host}:{port} ({reason_of(error)}) for metrics; choose another --metrics-host or "
                "--metrics-port"
            ) from None
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        logger.info("metrics on http://%s:%d/metrics", f"[{host}]" if ":" in host else host, server.server_port)

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return end


class MethodFigures:
    """The figures of one RPC, by its path and the name that it goes by, for example "Edit". For any thread."""

    def __init__(self, metrics: Metrics, path: str, name: str) -> None:
        self.path, self.name = path, name
        self._received_messages = metrics.received_messages.labels(name)
        self._received_bytes = metrics.received_bytes.labels(name)
        self.images = metrics.images.labels(name)
        self.sent_bytes = metrics.sent_bytes.labels(name)
        self.unheard = metrics.unheard.labels(name)  # calls that ended before their message had come
        # By gRPC status: to look labels up costs as much as to count.
        self._answers = cache(partial(metrics.stream_answers.labels, name))
        self._requests = cache(partial(metrics.requests.labels, name))
        self._seconds = cache(
            lambda code: metrics.seconds.labels("grpc", path[1:], code, code if code in SERVER_ERRORS else "")
        )

    def received(self, size: int) -> None:
        """A message of `size` bytes came in."""
        self._received_messages.inc()
        self._received_bytes.inc(size)

    def answered(self, code: str) -> None:
        """A request of a stream was answered, with "OK" or the gRPC status of the error in its answer."""
        self._answers(code).inc()

    def ended(self, code: str, seconds: float | None = None) -> None:
        """A call has ended with a gRPC status, `seconds` after it came; None: its message was never received."""
        self._requests(code).inc()
        if seconds is not None:
            self._seconds(code).observe(seconds)


class QueueFigures:
    """The figures of the queue of a model's "encode", "decode" or "edit"; a `BatchObserver` of engine.batching."""

    def __init__(self, metrics: Metrics, model: str, graph: str) -> None:
        self._images = 0
        metrics.queue_images.labels(model, graph).set_function(lambda: self._images)
        self._waits = metrics.queue_waits.labels(model, graph)
        self._batches = metrics.batch_images.labels(model, graph)
        self._seconds = metrics.compute_seconds.labels(model, graph)
        self._failures = metrics.failed_batches.labels(model, graph)

    def waiting(self, items: int) -> None:
        """Items in the queue now."""
        self._images = items

    def batch(self, items: int, waits: Sequence[float], seconds: float) -> None:
        """A batch was computed: its size, each request's wait and the time that it took, seconds."""
        self._batches.observe(items)
        self._seconds.observe(seconds)
        for wait in waits:
            self._waits.observe(wait)

    def failed(self) -> None:
        """The backend failed on a batch."""
        self._failures.inc()
