"""One measured case: closed or open loop against a server, beside the same engine in this process."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from export.errors import InputError
from protos import dfcvae_pb2 as pb
from serving import generator
from serving.generator import Outcome
from serving.reference import Reference, Throughput
from serving.requests import Case, Prepared, ask, prepare, read_answer
from serving.usage import Usage


@dataclass(frozen=True)
class Row:
    """What one run gave; NaN where there is none, and where the server isn't watched."""

    case: Case  # what was sent
    arrivals_per_s: float | None  # open loop: mean rate of arrivals; None for a closed loop
    requests: int
    images_per_s: float  # images of right answers, per second
    share: float | None  # of the in-process rate in batches as large as the server could make; None without --bundle
    # processor time in process, of that of server and generator together, per image: the share that there would be on
    # a machine with nothing else to do. None without --bundle.
    cpu_share: float | None
    latency_ms: dict[str, float]  # percentiles 50, 90, 99, 99.9 and the largest
    late_p99_ms: float  # open loop: how late the generator was itself, 99th percentile, ms; part of the latency
    server_cores: float  # cores that the server kept busy; likewise client_cores
    server_ms_per_image: float  # processor time of the server per image, ms
    rss_mib: float  # largest resident memory of the server, MiB
    client_cores: float
    failures: dict[str, int]  # requests without a right answer, by status
    histogram_ms: list[tuple[float, int]]  # upper bound in ms, and number of calls
    shares: tuple[float | None, ...]  # of all rounds, of which this row is the median

    @classmethod
    def median(cls, rows: Sequence["Row"]) -> "Row":
        """The row of the median share, or rate where there are no shares, with the failures of all."""
        failures = sum((Counter(row.failures) for row in rows), Counter[str]())
        ordered = sorted(rows, key=lambda row: row.images_per_s if row.share is None else row.share)
        return replace(ordered[(len(rows) - 1) // 2], failures=dict(failures), shares=tuple(row.share for row in rows))

    def cells(self) -> dict[str, object]:
        """As a line of a table."""
        case, closed = self.case, self.arrivals_per_s is None
        return {
            "call": f"{case.operation} {case.form} {case.transport}",
            "images": case.images,
            **({"in flight": case.in_flight} if closed else {"arrivals/s": round(self.arrivals_per_s or 0)}),
            "images/s": round(self.images_per_s),
            "share": None if self.share is None else f"{self.share:.0%}",
            "CPU share": None if self.cpu_share is None else f"{self.cpu_share:.0%}",
            **{name.replace("_", "."): value for name, value in self.latency_ms.items()},
            **({} if closed else {"late p99": self.late_p99_ms}),
            "server cores": self.server_cores,
            "ms/image": self.server_ms_per_image,
            "RSS MiB": self.rss_mib,
            "client cores": self.client_cores,
            "failed": sum(self.failures.values()),
        }


@dataclass
class Bench:
    """Runs cases against one server."""

    target: str  # HOST:PORT
    model: pb.GetModelResponse  # what it serves
    pid: int  # its process, to watch what it takes; 0 for none
    seconds: float  # time per case, seconds
    reference: Reference | None  # the same engine in this process; None leaves shares and values of answers alone

    def fits(self, case: Case) -> bool:
        """Whether the server's limits let a case through without refusals."""
        limits = self.model.limits
        room = limits.max_queued_images * 7 // 8  # the server keeps the rest for other clients than a busy one
        return case.images <= limits.max_images_per_request and case.images * case.in_flight <= room

    def closed(self, case: Case) -> Row:
        """One closed-loop case, with the engine in this process before and after it."""
        prepared, inside = self._checked(case), self._inside(case)
        with Usage(self.pid) as usage:
            outcome = asyncio.run(generator.closed_loop(self.target, prepared, case.in_flight, self.seconds))
        return _row(case, outcome, usage, inside=inside + self._inside(case))

    def open(self, case: Case, rate: float) -> tuple[Row, Outcome]:
        """One open-loop case: `rate` arrivals per second, whatever the case's `in_flight` says."""
        prepared = self._checked(case)
        with Usage(self.pid) as usage:
            outcome = asyncio.run(generator.open_loop(self.target, prepared, rate, self.seconds))
        return _row(case, outcome, usage, arrivals=rate), outcome

    def _checked(self, case: Case) -> Prepared:
        """A case's messages, with the length of their right answer, whose values are checked once."""
        prepared = prepare(case, self.model)
        answer = ask(self.target, prepared)
        got = read_answer(case, answer)
        name = f"{case.operation} {case.form} {case.transport} of {case.images}"
        if len(got) != case.images:
            raise InputError(f"{name}: the answer has {len(got)} items")
        if self.reference is not None:
            self.reference.check(case, got, name)
        return replace(prepared, answer_bytes=len(answer))

    def _inside(self, case: Case) -> list[Throughput]:
        if self.reference is None:
            return []
        batch = min(case.images * case.in_flight, self.reference.manifest.max_batch_size)
        return [self.reference.throughput(case.operation, batch, self.seconds / 4)]


def _row(
    case: Case, outcome: Outcome, usage: Usage, *, inside: Sequence[Throughput] = (), arrivals: float | None = None
) -> Row:
    calls, closed = outcome.calls, arrivals is None
    images = len(calls) * case.images
    images_per_s = calls.rate(case.in_flight if closed else 0) * case.images
    share = cpu_share = None
    if inside:
        computed, wall_s, cpu_s = (sum(column) for column in zip(*inside, strict=True))
        share = images_per_s * wall_s / computed
        if usage.pid and images:
            cpu_share = cpu_s / computed / ((usage.cpu_s + outcome.cpu_s) / images)
    return Row(
        case=case,
        arrivals_per_s=arrivals,
        requests=len(calls),
        images_per_s=images_per_s,
        share=share,
        cpu_share=cpu_share,
        latency_ms=calls.percentiles(),
        late_p99_ms=float(np.percentile(outcome.late or [np.nan], 99) * 1e3),
        server_cores=usage.cores,
        server_ms_per_image=usage.cpu_s / images * 1e3 if images else np.nan,
        rss_mib=usage.peak_mib,
        client_cores=outcome.cpu_s / usage.wall_s,
        failures=dict(outcome.failures),
        histogram_ms=calls.histogram(),
        shares=(share,),
    )
