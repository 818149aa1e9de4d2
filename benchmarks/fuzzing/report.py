"""The results as Markdown, for the terminal and for a dated report; findings as files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.calling import Tally
from fuzzing.guiding import Figures

MAX_GROWTH_MIB = 64.0
"""Of the server's resident memory, from a fifth of the requests to their end."""
MAX_PEAK_MIB = 512.0
"""Of the same, above that: eight of the largest messages."""


@dataclass
class Results:
    """What came of it all.

    Attributes:
        tally: Of the requests.
        seconds: How long they took.
        rss_mib: Resident memory of the server: after a fifth of the requests, at their end, and the most of all.
        connections: Abusive connections.
        bystander: Good requests that another client sent meanwhile, and that were answered.
        again: How many of them were refused for want of room at first.
        guided: Figures of the coverage-guided fuzzer.
        faults: What went wrong beside single requests, a sentence each.
    """

    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    rss_mib: tuple[float, float, float] = (0.0, 0.0, 0.0)
    connections: int = 0
    bystander: int = 0
    again: int = 0
    guided: list[Figures] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all was clean."""
        return not (self.tally.failures or self.faults or any(one.fault for one in self.guided))


def markdown(results: Results) -> Iterator[str]:
    """Lines of a report."""
    tally = results.tally
    statuses = sorted({status for _, status in tally.statuses})
    yield "| method | calls | " + " | ".join(statuses) + " |"
    yield "|---|" + "---:|" * (len(statuses) + 1)
    methods = sorted({method for method, _ in tally.statuses})
    for method in methods:
        counts = [tally.statuses[method, status] for status in statuses]
        yield f"| {method} | {sum(counts):,} | " + " | ".join(f"{count:,}" for count in counts) + " |"
    totals = [sum(tally.statuses[method, status] for method in methods) for status in statuses]
    yield f"| all | {tally.calls:,} | " + " | ".join(f"{count:,}" for count in totals) + " |"
    yield ""
    rate = tally.calls / results.seconds if results.seconds else 0.0
    yield f"- {tally.calls:,} requests in {results.seconds:.0f} s ({rate:,.0f} a second); not clean: {tally.failures}"
    yield f"- {results.connections:,} connections that speak no proper HTTP/2 or gRPC"
    again = f", {results.again} of them at the second try" if results.again else ""
    yield f"- {results.bystander:,} good requests of another client meanwhile, all answered as before{again}"
    early, late, peak = results.rss_mib
    yield f"- memory of the server: {early:.0f} MiB after a fifth, {late:.0f} MiB at the end, at most {peak:.0f} MiB"
    for one in results.guided:
        yield (
            f"- coverage-guided, {one.target}: {one.inputs:,} inputs, {one.edges:,} branches reached, {one.kept:,} "
            f"inputs kept, at most {one.peak_mib} MiB: {'FAIL' if one.fault else 'clean'}"
        )
    for fault, times in Counter(results.faults).items():
        yield f"- FAIL{f' {times} times' if times > 1 else ''}: {fault}"
    for case, outcome, wrong in tally.findings[:20]:
        yield f"- FAIL: {case.name} ({sum(map(len, case.bodies))} bytes): {wrong} [{outcome.message[:200]!r}]"
    for one in results.guided:
        if one.fault:
            yield f"- FAIL: {one.target}:\n\n```\n{one.fault}\n```"
    yield ""
    yield "PASS" if results.passed else "FAIL"


def write_findings(results: Results, folder: Path) -> None:
    """Writes the requests that weren't answered cleanly, one file each, with their messages as hex."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (case, outcome, wrong) in enumerate(results.tally.findings):
        lines = [wrong, f"{outcome.status}: {outcome.message}", case.path, str(case.metadata), str(case.timeout_s)]
        (folder / f"{number:03}.txt").write_text("\n".join([*lines, *(body.hex() for body in case.bodies)]))
