"""Load on a server through gRPC: closed and open loop, throughput, latency, and what server and generator take.

Closed loop: so many requests under way at any time. Open loop: requests arrive at random (Poisson), and latency counts
from the time that they were meant to leave. With --bundle the same engine is measured in this process too, before and
after each case, while the server is idle. Exit code 1 if an answer was not right.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import datetime
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from serving import h2load, unary
from serving.bench import Bench, Row
from serving.bodies import Case, Form, Prepared, ask_model
from serving.echo import PATH as ECHO_PATH
from serving.figures import markdown, write_json
from serving.inprocess import InProcess
from serving.process import ROOT, ScriptError, Server, family, listener
from tqdm import tqdm

from engine.bundle import Bundle
from engine.errors import EngineError
from engine.proof.machine import cpu_model
from export.versions import versions


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """What to send, how much of it, and for how long."""

    target: str
    """HOST:PORT of the server; see `python -m engine`."""
    bundle: Path | None = None
    """Bundle folder that it serves: adds the share of the in-process rate."""
    pid: int | None = None
    """Process of the server, to watch its CPU and memory; None finds it by its port, 0 goes without."""
    operations: tuple[Literal["encode", "edit", "decode"], ...] = ("encode", "edit", "decode")
    """Operations of unary calls."""
    stream_operations: tuple[Literal["edit", "slide"], ...] = ("edit", "slide")
    """Operations on EditStream; slide moves the last image again, which costs only a decode."""
    forms: tuple[Form, ...] = ("raw", "jpeg")
    """Images as pixels, or as JPEG files, both ways."""
    in_flight: tuple[int, ...] = (1, 8, 32, 64)
    """Closed loop: requests under way."""
    images: tuple[int, ...] = (1, 8, 32, 128)
    """Images per request."""
    arrivals: tuple[float, ...] = (0.5, 0.8)
    """Open loop, for raw unary calls: arrivals per second, as shares of the closed loop's best rate for the request."""
    client: Literal["auto", "h2load", "python"] = "auto"
    """Generator of unary closed loops; auto takes h2load (written in C) where it is installed."""
    seconds: float = 2.0
    """Time per case, seconds."""
    rounds: int = 1
    """Times that each closed loop is run, for machines that drift; the one with the median share counts."""
    json: Path | None = None
    """File to write all figures to, latency histograms too."""
    quick: bool = False
    """A smoke test: a few small cases, a fraction of a second each."""

    def resolved(self) -> LoadConfig:
        """Checked, and with `quick` and `client` worked out.

        Raises:
            ScriptError: Names the flag, its value and the mend.
        """
        for name in ("in_flight", "images"):
            for value in getattr(self, name):
                if value < 1:
                    raise ScriptError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        if self.rounds < 1:
            raise ScriptError(f"--rounds {self.rounds}: must be at least 1")
        if not 0 < self.seconds < float("inf"):
            raise ScriptError(f"--seconds {self.seconds}: must be above 0")
        if any(not 0 < share < float("inf") for share in self.arrivals):
            raise ScriptError(f"--arrivals {' '.join(map(str, self.arrivals))}: must be above 0")
        if self.json is not None and not self.json.parent.is_dir():
            raise ScriptError(f"--json {self.json}: there is no folder {self.json.parent}; make it first")
        if self.client == "h2load" and not h2load.available():
            raise ScriptError("--client h2load: it is not installed (Debian: nghttp2-client); or give --client python")
        client = "h2load" if self.client == "auto" and h2load.available() else self.client
        chosen = replace(self, client="python" if client == "auto" else client)
        if not self.quick:
            return chosen
        return replace(chosen, in_flight=(1, 4), images=(1, 8), arrivals=(0.5,), seconds=min(self.seconds, 0.1))

    def cases(self) -> Iterator[Case]:
        """Closed-loop cases, those that share an in-process rate beside each other."""
        for form in self.forms:
            for transport, operations in (("unary", self.operations), ("stream", self.stream_operations)):
                for operation in operations:
                    for images in self.images:
                        for in_flight in self.in_flight:
                            yield Case(operation, form, transport, images, in_flight)  # type: ignore[arg-type]


def open_bench(config: LoadConfig) -> Bench:
    """Finds the server, and opens the bundle beside it.

    Raises:
        ScriptError: One of them can't be used; likewise EngineError.
    """
    model = ask_model(config.target)
    pid = listener(config.target) if config.pid is None else config.pid
    family(pid)
    inside = None
    if config.bundle is not None:
        bundle = Bundle.load(config.bundle)
        given = (bundle.manifest.image_size, bundle.manifest.latent_dim)
        if given != (model.image_size, model.latent_dim):
            raise ScriptError(
                f"--bundle {config.bundle} has image size and latents {given}, the server "
                f"{(model.image_size, model.latent_dim)}: give the bundle that it serves"
            )
        inside = InProcess(bundle)
    return Bench(config.target, model, pid, config.seconds, inside=inside, use_h2load=config.client == "h2load")


def closed_loops(config: LoadConfig, bench: Bench) -> list[Row]:
    """All closed-loop cases that fit the server's limits; says which don't."""
    cases = list(config.cases())
    fitting = [case for case in cases if bench.fits(case)]
    if len(fitting) < len(cases):
        limits = bench.model.limits
        print(
            f"{len(cases) - len(fitting)} of {len(cases)} cases are left out: more than {limits.max_queued_images} "
            f"images under way, or {limits.max_images_per_request} in a request; "
            "start the server with a larger --max-queue",
            file=sys.stderr,
        )
    rows: dict[Case, list[Row]] = {case: [] for case in fitting}
    plan = fitting * config.rounds  # all once, then all again
    for case in tqdm(plan, desc="closed loop", unit="case", leave=False, disable=None):
        rows[case].append(bench.closed(case))
    return [Row.median(runs) for runs in rows.values()]


def open_loops(config: LoadConfig, bench: Bench, closed: Sequence[Row]) -> list[Row]:
    """For each unary raw request of the closed loops: arrivals at shares of its best rate."""
    best: dict[tuple[str, int], Row] = {}
    for row in closed:
        key = (row.case.operation, row.case.images)
        raw = row.case.form == "raw" and row.case.transport == "unary"
        if raw and row.requests and (key not in best or row.images_per_s > best[key].images_per_s):
            best[key] = row
    plan = [(row, share) for row in best.values() for share in config.arrivals]
    rows = []
    for row, share in tqdm(plan, desc="open loop", unit="case", leave=False, disable=None):
        rows.append(bench.open(row.case, share * row.images_per_s / row.case.images)[0])
    return rows


def echo_ms(use_h2load: bool, seconds: float) -> float:
    """Median round trip of an empty call to a server that does nothing, with one in flight, ms."""
    empty = Prepared(ECHO_PATH, b"")
    script = ROOT / "benchmarks" / "serving" / "echo.py"
    with tempfile.TemporaryDirectory() as folder, Server([script], Path(folder, "log")) as server:
        if use_h2load:
            outcome = h2load.closed_loop(server.target, empty, 0, 1, round(1000 * seconds))
        else:
            outcome = asyncio.run(unary.closed_loop(server.target, empty, 0, 1, seconds))
    return outcome.calls.percentiles()["p50"]


def aims(rows: Sequence[Row], bench: Bench, echo: float) -> list[dict[str, object]]:
    """What the project aims at, for raw Edit, and what was reached; empty without --bundle."""
    if bench.inside is None:
        return []

    def edits(transport: str, **wanted: int) -> list[Row]:
        raw = [row for row in rows if row.case.operation == "edit" and row.case.form == "raw"]
        return [
            row
            for row in raw
            if row.case.transport == transport and all(getattr(row.case, key) == value for key, value in wanted.items())
        ]

    lines: list[dict[str, object]] = []
    for what, aim, found in (
        ("32-image requests", 0.92, edits("unary", images=32)),
        ("EditStream", 0.85, edits("stream")),
        ("single images, 32 in flight", 0.65, edits("unary", images=1, in_flight=32)),
    ):
        if found:
            best = max(found, key=lambda row: row.share or 0)
            cpu = "" if best.cpu_share is None else f"; {best.cpu_share:.0%} of processor time"
            where = f"{best.case.images} images, {best.case.in_flight} in flight{cpu}"
            reached = f"{best.share or 0:.0%}"
            lines.append({"raw Edit": what, "aim": f">= {aim:.0%}", "reached": reached, "best at": where})
    for row in edits("unary", images=1, in_flight=1):
        alone, p50 = row.inside_ms or 0, row.latency_ms["p50"]
        where = f"p50 {p50:.2f} ms; in process {alone:.2f} ms, echo {echo:.2f} ms"
        reached = f"{p50 / (alone + echo):.2f} x"
        lines.append({"raw Edit": "one in flight", "aim": "<= 1.6 x", "reached": reached, "best at": where})
    return lines


def report(config: LoadConfig, bench: Bench, closed: Sequence[Row], opened: Sequence[Row]) -> dict[str, Any]:
    """Prints the tables, and gives all figures for the JSON."""
    model = bench.model
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    cores = len(os.sched_getaffinity(0))
    print(f"{cpu_model()}, {cores} cores for server and generator, load {os.getloadavg()[0]:.1f}, {now}")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(
        f"server: {model.backend} {model.precision}, batches of up to {model.max_batch_size}, {model.image_size} pixels"
    )
    if bench.inside:
        print(
            "share: of the in-process rate in batches as large as the server could make; CPU share: processor time in"
        )
        print("process, of that of server and generator: the share on a machine that does nothing else")
    print("ms: latencies and processor time of the server per image; cores: how many were kept busy\n")
    print("Closed loop\n", markdown([row.cells() for row in closed]), sep="\n", end="\n\n")
    if opened:
        print("Open loop (latency from the intended start; late: what the generator itself was late)\n")
        print(markdown([row.cells() for row in opened]), end="\n\n")
    echo = echo_ms(config.client == "h2load", min(config.seconds, 1.0))
    reached = aims(closed, bench, echo)
    print(markdown(reached), f"empty echo, one in flight: {echo:.3f} ms", sep="\n\n" if reached else "")
    record: dict[str, Any] = {
        "date": now,
        "machine": {"cpu": cpu_model(), "cores": cores, "versions": versions()},
        "config": asdict(config),
        "server": {"backend": model.backend, "precision": model.precision, "max_batch_size": model.max_batch_size},
        "echo_p50_ms": echo,
        "aims": reached,
        "closed_loop": [asdict(row) for row in closed],
        "open_loop": [asdict(row) for row in opened],
    }
    return record


def measure(config: LoadConfig) -> bool:
    """Runs everything; whether every answer was right.

    Raises:
        ScriptError: A flag, the server or the bundle can't be used; likewise EngineError.
    """
    config = config.resolved()
    bench = open_bench(config)
    closed = closed_loops(config, bench)
    opened = open_loops(config, bench, closed)
    record = report(config, bench, closed, opened)
    if config.json is not None:
        write_json(config.json, record)
    failed = sum(sum(row.failures.values()) for row in (*closed, *opened))
    if failed:
        print(f"\nFAIL: {failed} requests had no right answer", file=sys.stderr)
    return not failed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 measured, 1 a request had no right answer, 2 unusable input, 130 interrupted."""
    try:
        config = tyro.cli(LoadConfig, args=arguments, prog="python benchmarks/load.py", description=__doc__)
        return 0 if measure(config) else 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except (ScriptError, EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
