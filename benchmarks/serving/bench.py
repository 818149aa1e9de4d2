"""One measured case: closed or open loop against a server, beside the same engine in this process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc
import numpy as np

from protos import dfcvae_pb2 as pb
from serving import arrivals, h2load, stream, unary
from serving.bodies import Case, Prepared, prepare, read_answer
from serving.inprocess import InProcess, Pace
from serving.process import ScriptError, Usage
from serving.unary import Outcome

MIN_ROUNDS = 3
"""Fewest times that the requests under way are replaced in a run, however slow they are."""


@dataclass(frozen=True)
class Row:
    """What one run gave.

    Attributes:
        case: What was sent.
        client: Which generator sent it.
        arrivals_per_s: Open loop: mean rate of arrivals; None for a closed loop.
        images_per_s: Images of right answers, per second.
        share: Of the in-process rate in batches as large as the server could make; None without --bundle.
        inside_ms: Median time of a batch in process, as large as the server could make, ms; None without --bundle.
        cpu_share: Processor time in process, of that of server and generator together, per image: the share that there
            would be on a machine with nothing else to do. None without --bundle.
        latency_ms: Percentiles 50, 90, 99, 99.9 and the largest.
        late_p99_ms: Open loop: how late the generator was itself, 99th percentile, ms; part of the latency.
        server_cores: Cores that the server kept busy; likewise client_cores.
        server_ms_per_image: Processor time of the server per image, ms.
        rss_mib: Largest resident memory of the server, MiB.
        failures: Requests without a right answer, by status.
        histogram_ms: Upper bound in ms, and number of calls.
        shares: Of all rounds, of which this row is the median.
    """

    case: Case
    client: str
    arrivals_per_s: float | None
    requests: int
    images_per_s: float
    share: float | None
    inside_ms: float | None
    cpu_share: float | None
    latency_ms: dict[str, float]
    late_p99_ms: float | None
    server_cores: float | None
    server_ms_per_image: float | None
    rss_mib: float | None
    client_cores: float
    failures: dict[str, int]
    histogram_ms: list[tuple[float, int]]
    shares: tuple[float | None, ...]

    @classmethod
    def median(cls, rows: Sequence[Row]) -> Row:
        """The row of the median share, or rate where there are no shares, with the failures of all."""
        failures: Counter[str] = Counter()
        for row in rows:
            failures.update(row.failures)
        ordered = sorted(rows, key=lambda row: row.images_per_s if row.share is None else row.share)
        return replace(ordered[(len(rows) - 1) // 2], failures=dict(failures), shares=tuple(row.share for row in rows))

    def cells(self) -> dict[str, object]:
        """As a line of a table."""
        case, latency = self.case, self.latency_ms
        cells: dict[str, object] = {"call": f"{case.operation} {case.form} {case.transport}", "images": case.images}
        if self.arrivals_per_s is None:
            cells["in flight"] = case.in_flight
        else:
            cells["arrivals/s"] = round(self.arrivals_per_s)
        cells |= {
            "images/s": round(self.images_per_s),
            "share": _percent(self.share),
            "CPU share": _percent(self.cpu_share),
        }
        cells |= {name.replace("_", "."): value for name, value in latency.items()}
        if self.late_p99_ms is not None:
            cells["late p99"] = self.late_p99_ms
        cells |= {"server cores": self.server_cores, "ms/image": self.server_ms_per_image}
        cells |= {"RSS MiB": None if self.rss_mib is None else round(self.rss_mib), "client cores": self.client_cores}
        return cells | {"client": self.client, "failed": sum(self.failures.values())}


class Bench:
    """Runs cases against one server.

    Args:
        target: HOST:PORT.
        model: What it serves.
        pid: Its process, to watch what it takes; 0 for none.
        seconds: Time per case, seconds.
        inside: The same engine in this process; None leaves shares and values of answers alone.
        use_h2load: Whether unary closed loops come from h2load.
    """

    def __init__(
        self,
        target: str,
        model: pb.GetModelResponse,
        pid: int,
        seconds: float,
        *,
        inside: InProcess | None = None,
        use_h2load: bool = False,
    ) -> None:
        self.target = target
        self.model = model
        self.pid = pid
        self.seconds = seconds
        self.inside = inside
        self._use_h2load = use_h2load
        self._prepared: dict[Case, tuple[Prepared, int]] = {}

    def fits(self, case: Case) -> bool:
        """Whether the server's limits let a case through without refusals."""
        limits = self.model.limits
        room = limits.max_queued_images * 7 // 8  # the server keeps the rest for other clients than a busy one
        return case.images <= limits.max_images_per_request and case.images * case.in_flight <= room

    def closed(self, case: Case) -> Row:
        """One closed-loop case, with the engine in this process before and after it.

        Raises:
            ScriptError: The server refuses such requests, or answers them wrongly.
        """
        prepared, size = self._checked(case)
        flight = case.in_flight
        use_h2load = self._use_h2load and case.transport == "unary"
        requests = MIN_ROUNDS * flight
        if use_h2load:
            pilot = h2load.closed_loop(self.target, prepared, size, flight, requests)
            requests = max(requests, round(pilot.calls.rate() * self.seconds))
        inside = self._inside(case)
        with Usage(self.pid) as usage:
            if use_h2load:
                outcome = h2load.closed_loop(self.target, prepared, size, flight, requests)
            else:
                loop = unary.closed_loop if case.transport == "unary" else stream.closed_loop
                outcome = asyncio.run(loop(self.target, prepared, size, flight, self.seconds))
        inside += self._inside(case)
        return _row(case, "h2load" if use_h2load else "python", outcome, usage, inside=inside, arrivals=None)

    def open(self, case: Case, rate: float) -> tuple[Row, Outcome]:
        """One open-loop case: `rate` arrivals per second, whatever the case's `in_flight` says.

        Raises:
            ScriptError: The server refuses such requests, or answers them wrongly.
        """
        prepared, size = self._checked(case)
        with Usage(self.pid) as usage:
            outcome = arrivals.open_loop(self.target, prepared, size, rate, self.seconds)
        return _row(case, "frames", outcome, usage, inside=[], arrivals=rate), outcome

    def _checked(self, case: Case) -> tuple[Prepared, int]:
        """A case's messages, and the length of the right answer, whose values are checked once."""
        one = replace(case, in_flight=1)
        if one not in self._prepared:
            prepared = prepare(one, self.model)
            ask = unary.ask if case.transport == "unary" else stream.ask
            name = f"{case.operation} {case.form} {case.transport} of {case.images}"
            try:
                answer = asyncio.run(ask(self.target, prepared))
            except grpc.RpcError as error:
                said = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
                raise ScriptError(f"{name}: the server refused it: {said}") from None
            got = read_answer(one, answer)
            if len(got) != case.images:
                raise ScriptError(f"{name}: the answer has {len(got)} items")
            if self.inside is not None:
                self.inside.check(one, got, name)
            self._prepared[one] = prepared, len(answer)
        return self._prepared[one]

    def _inside(self, case: Case) -> list[Pace]:
        if self.inside is None:
            return []
        return [self.inside.pace(case.operation, self.inside.batch_of(case.images * case.in_flight), self.seconds / 4)]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def _row(
    case: Case, client: str, outcome: Outcome, usage: Usage, *, inside: Sequence[Pace], arrivals: float | None
) -> Row:
    calls = outcome.calls
    closed = arrivals is None
    images = len(calls) * case.images
    images_per_s = calls.rate(case.in_flight if closed else 0) * case.images
    share = cpu_share = inside_ms = None
    if inside:
        inside_ms = float(np.median([one for pace in inside for one in pace.seconds])) * 1e3
        computed = sum(pace.images for pace in inside)
        share = images_per_s * sum(sum(pace.seconds) for pace in inside) / computed
        if usage.pid and images:
            cpu_share = sum(pace.cpu_s for pace in inside) / computed / ((usage.cpu_s + outcome.cpu_s) / images)
    return Row(
        case=case,
        client=client,
        arrivals_per_s=arrivals,
        requests=len(calls),
        images_per_s=images_per_s,
        share=share,
        inside_ms=inside_ms,
        cpu_share=cpu_share,
        latency_ms=calls.percentiles(),
        late_p99_ms=None if closed else float(np.percentile(outcome.late, 99) * 1e3),
        server_cores=usage.cores if usage.pid else None,
        server_ms_per_image=usage.cpu_s / images * 1e3 if usage.pid and images else None,
        rss_mib=usage.peak_mib if usage.pid else None,
        client_cores=outcome.cpu_s / usage.wall_s,
        failures=outcome.failures,
        histogram_ms=calls.histogram(),
        shares=(share,),
    )
