"""What the server counts and times, for Prometheus.

Figures are plain attributes that the event loop adds to, and `Metrics` shows them when Prometheus asks: the library's
own counters take a lock for each addition, which calls would feel.
"""

import logging
import platform
import socket
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import grpc
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from engine.errors import StartupError
from engine.telemetry.scrapes import ScrapeServer
from engine.version import version_here

logger = logging.getLogger(__name__)

# Doubling, so that a quantile that is read from them is wrong by a factor of 1.4 at most.
_SECONDS = tuple(0.0005 * 2**power for power in range(17))
_IMAGES = tuple(2.0**power for power in range(11))


class Histogram:
    """Values counted in buckets.

    Args:
        bounds: Upper bound of each bucket, inclusive, rising; values beyond have one more.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        """Values so far."""
        return sum(self._counts)

    def show(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Adds itself to what Prometheus is told."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family.add_metric(labels, buckets, self._sum)


@dataclass(slots=True, eq=False)
class MethodFigures:
    """The figures of one RPC.

    Attributes:
        path: Of the RPC, for example "/dfcvae.v1.LatentEngine/Edit", or its name alone.
        name: Of the RPC, for example "Edit".
        images: Images and latents that calls asked for.
        received_messages: Messages that came in.
        received_bytes: Their bytes.
        sent_bytes: Bytes of the messages that went out.
        seconds: From a call's arrival to its end, by gRPC status.
        answers: Requests within streams that were answered, by "OK" or the gRPC status of the error in the answer.
        refusals: Calls that were refused before their message was received, by gRPC status, beside those in `seconds`;
            who takes core's events writes them.
        incomplete: Calls that ended before their message had come, which are not in `seconds`.
    """

    path: str
    name: str
    images: int = 0
    received_messages: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    seconds: dict[str, Histogram] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    incomplete: int = 0

    def received(self, size: int) -> None:
        """A message of `size` bytes came in."""
        self.received_messages += 1
        self.received_bytes += size

    def answered(self, code: str) -> None:
        """A request of a stream was answered, with "OK" or the gRPC status of the error in its answer."""
        self.answers[code] += 1

    def refused(self, code: str) -> None:
        """A call was refused before its message was received, with a gRPC status."""
        self.refusals[code] += 1

    def ended(self, code: str, seconds: float) -> None:
        """A call has ended, `seconds` after it came, with a gRPC status."""
        if (histogram := self.seconds.get(code)) is None:
            histogram = self.seconds[code] = Histogram(_SECONDS)
        histogram.observe(seconds)

    def ends(self) -> list[tuple[str, int]]:
        """Calls that have ended, by gRPC status; from any thread."""
        codes = Counter({code: histogram.count for code, histogram in dict(self.seconds).items()})
        codes.update(dict(self.refusals))
        return list(codes.items())


@dataclass(slots=True, eq=False)
class QueueFigures:
    """The figures of one graph's queue; an `engine.batching.batcher.BatchObserver`.

    Attributes:
        images: That wait now.
        waits: From queue to batch, for each request, seconds.
        batches: Images in a batch.
        compute: Time of a batch, seconds.
        failures: Batches that the backend failed on.
    """

    images: int = 0
    waits: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    batches: Histogram = field(default_factory=partial(Histogram, _IMAGES))
    compute: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    failures: int = 0

    def waiting(self, items: int) -> None:
        """Items in the queue now."""
        self.images = items

    def batch(self, items: int, waits: Sequence[float], seconds: float) -> None:
        """A batch was computed: its size, each request's wait and the time that it took, seconds."""
        self.batches.observe(items)
        self.compute.observe(seconds)
        for wait in waits:
            self.waits.observe(wait)

    def failed(self) -> None:
        """The backend failed on a batch."""
        self.failures += 1


class Metrics:
    """All figures of one server. Labels are names of methods, statuses, models and graphs only: memory stays flat."""

    def __init__(self) -> None:
        self._methods: list[MethodFigures] = []
        self._queues: dict[tuple[str, str], QueueFigures] = {}
        self._reloads: Counter[tuple[str, str]] = Counter()
        self._unknown = 0
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def method(self, path: str) -> MethodFigures:
        """New figures of an RPC, by its path or its name; where another has that name, they go by the path."""
        name = path.rpartition("/")[2]
        taken = any(other.name == name for other in self._methods)
        figures = MethodFigures(path, path if taken else name)
        self._methods.append(figures)
        return figures

    def unknown(self) -> None:
        """Counts a call of a method that the server hasn't got; on one thread at a time."""
        self._unknown += 1

    def watch(self, model: str, graph: str) -> QueueFigures:
        """The figures of a graph's queue; those of a new bundle go on where the old one's end."""
        return self._queues.setdefault((model, graph), QueueFigures())

    def reloaded(self, model: str, taken: bool) -> None:
        """Counts a new bundle."""
        self._reloads[model, "taken" if taken else "refused"] += 1

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a figure that is asked for at each scrape, from another thread."""
        self._gauges.append((f"dfcvae_{name}", text, value))

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answers scrapes over HTTP, from a thread of its own.

        Args:
            host: Address to listen on.
            port: TCP port; 0 picks a free one.

        Returns:
            A function that ends it.

        Raises:
            StartupError: When the address can't be used.
        """
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            server = ScrapeServer(family, (str(address[0]), int(address[1])), self.registry)
        except OSError as error:
            raise StartupError(
                f"can't listen on {host}:{port} ({error.strerror}) for metrics; choose another --metrics-host or "
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

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told; the library calls it for each scrape."""
        yield from self._collect_methods()
        yield from self._collect_queues()
        yield _counter(
            "reloads", "New bundles, by whether they were taken.", ["model", "outcome"], self._reloads.items()
        )
        for name, text, value in self._gauges:
            yield GaugeMetricFamily(name, text, value())
        versions = {"version": version_here(), "python": platform.python_version(), "grpc": str(grpc.__version__)}
        yield InfoMetricFamily("dfcvae_build", "Versions of the server's software.", versions)

    def _collect_methods(self) -> Iterator[Metric]:
        methods, label = self._methods, ["method"]
        codes = [((one.name, code), count) for one in methods for code, count in one.ends()]
        codes.append((("unknown", "UNIMPLEMENTED"), self._unknown))
        yield _counter("requests", "Calls that have ended, by gRPC status.", ["method", "code"], codes)
        answers = [((one.name, code), count) for one in methods for code, count in dict(one.answers).items()]
        text = "Requests within streams that were answered, by the gRPC status of the error in the answer, or OK."
        yield _counter("stream_answers", text, ["method", "code"], answers)
        yield _histogram(
            "rpc_server_call_duration_seconds",  # and its labels: OpenTelemetry's rpc.server.call.duration
            "From a call's arrival to its end.",
            ["rpc_system_name", "rpc_method", "rpc_response_status_code"],
            [
                (("grpc", one.path.lstrip("/"), code), histogram)
                for one in methods
                for code, histogram in dict(one.seconds).items()
            ],
        )
        texts = {
            "images": "Images and latents that calls asked for.",
            "received_messages": "Messages that came in; one a call, streams have many.",
            "received_bytes": "Bytes of messages that came in.",
            "sent_bytes": "Bytes of messages that went out.",
        }
        for name, text in texts.items():
            yield _counter(name, text, label, [((one.name,), getattr(one, name)) for one in methods])
        text = "Calls that ended before their message had come: too large, or given up. Not in requests."
        yield _counter("unheard", text, label, [((one.name,), one.incomplete) for one in methods])

    def _collect_queues(self) -> Iterator[Metric]:
        queues, labels = list(self._queues.items()), ["model", "graph"]
        waiting = GaugeMetricFamily("dfcvae_queue_images", "Images that wait.", labels=labels)
        for key, queue in queues:
            waiting.add_metric(key, queue.images)
        yield waiting
        failures = [(key, queue.failures) for key, queue in queues]
        yield _counter("failed_batches", "Batches that the backend failed on.", labels, failures)
        texts = {
            "dfcvae_queue_wait_seconds": ("waits", "From queue to batch, for each request."),
            "dfcvae_batch_images": ("batches", "Images in a batch."),
            "dfcvae_compute_seconds": ("compute", "Compute time of a batch."),
        }
        for name, (attribute, text) in texts.items():
            yield _histogram(name, text, labels, [(key, getattr(queue, attribute)) for key, queue in queues])


def _counter(
    name: str, text: str, labels: list[str], counts: Iterable[tuple[tuple[str, ...], int]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"dfcvae_{name}", text, labels=labels)
    for key, count in list(counts):
        family.add_metric(key, count)
    return family


def _histogram(
    name: str, text: str, labels: list[str], histograms: Iterable[tuple[tuple[str, ...], Histogram]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, histogram in histograms:
        histogram.show(family, key)
    return family
