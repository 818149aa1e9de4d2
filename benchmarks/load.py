"""Load on a server through gRPC: closed and open loop, throughput, latency, and what server and generator take.

Closed loop: so many requests under way at any time. Open loop: requests arrive at random (Poisson), and latency counts
from the time that they were meant to leave. With --bundle the same engine is measured in this process too, before and
after each case, while the server is idle. Exit code 1 if an answer was not right.
"""

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from script import machine, main_of, require_positive, summary, write_json
from serving.bench import Bench, Row
from serving.figures import markdown
from serving.reference import Reference
from serving.requests import Case, Form, ask_model
from serving.usage import listener
from tqdm import tqdm

from engine.bundle import Bundle
from export.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """What to send, how much of it, and for how long."""

    target: str
    """HOST:PORT of the server; see `python -m engine`. On this machine its CPU and memory are watched, too."""
    bundle: Path | None = None
    """Bundle folder that it serves: adds the share of the in-process rate."""
    operations: tuple[Literal["encode", "edit", "decode"], ...] = ("encode", "edit", "decode")
    """Operations of unary calls."""
    stream_operations: tuple[Literal["edit", "slide"], ...] = ("edit", "slide")
    """Operations on EditStream; slide moves the last image again, which costs only a decode."""
    infer_operations: tuple[Literal["encode", "edit", "decode"], ...] = ()
    """Operations of ModelInfer, the Open Inference Protocol's method, with raw contents."""
    forms: tuple[Form, ...] = ("raw", "jpeg")
    """Images as pixels, or as JPEG files, both ways."""
    in_flight: tuple[int, ...] = (1, 8, 32, 64)
    """Closed loop: requests under way."""
    images: tuple[int, ...] = (1, 8, 32, 128)
    """Images per request."""
    arrivals: tuple[float, ...] = (0.5, 0.8)
    """Open loop, for unary calls: arrivals per second, as shares of the closed loop's best rate for the request."""
    seconds: float = 2.0
    """Time per case, seconds."""
    rounds: int = 1
    """Times that each closed loop is run, for machines that drift; the one with the median share counts."""
    json: Path | None = None
    """File to write all figures to, latency histograms too."""

    def cases(self) -> Iterator[Case]:
        """Closed-loop cases; those that share an in-process rate follow each other."""
        calls = {"unary": self.operations, "infer": self.infer_operations, "stream": self.stream_operations}
        ways = [(transport, operation) for transport, operations in calls.items() for operation in operations]
        for form, (transport, operation), images, in_flight in product(self.forms, ways, self.images, self.in_flight):
            if transport != "infer" or form == "raw":
                yield Case(operation, form, transport, images, in_flight)  # type: ignore[arg-type]


def open_bench(config: LoadConfig) -> Bench:
    """Finds the server, and opens the bundle beside it."""
    model = ask_model(config.target)
    reference = None
    if config.bundle is not None:
        reference = Reference(Bundle.load(config.bundle))
        given = (reference.manifest.image_size, reference.manifest.latent_dim)
        if given != (model.image_size, model.latent_dim):
            raise InputError(
                f"--bundle {config.bundle} has image size and latents {given}, the server "
                f"{(model.image_size, model.latent_dim)}: give the bundle that it serves"
            )
    return Bench(config.target, model, listener(config.target), config.seconds, reference)


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
    """For each unary request of the closed loops: arrivals at shares of its best rate."""
    best: dict[tuple[str, str, int], Row] = {}
    for row in sorted(closed, key=lambda row: row.images_per_s):
        if row.case.transport == "unary" and row.requests:
            best[row.case.form, row.case.operation, row.case.images] = row
    plan = [(row, share) for row in best.values() for share in config.arrivals]
    cases = tqdm(plan, desc="open loop", unit="case", leave=False, disable=None)
    return [bench.open(row.case, share * row.images_per_s / row.case.images)[0] for row, share in cases]


def measure(config: LoadConfig) -> bool:
    """Runs everything. Returns whether every answer was right."""
    require_positive(config, "in_flight", "images", "rounds", "seconds", "arrivals")
    here = machine()
    bench = open_bench(config)
    model = bench.model
    closed = closed_loops(config, bench)
    opened = open_loops(config, bench, closed)

    print(summary(here))
    print(f"server: {model.backend} {model.precision}, batches of up to {model.max_batch_size}, {model.image_size} px")
    if bench.reference:
        print("share: of the in-process rate in batches as large as the server could make; CPU share: the same by")
        print("processor time of server and generator, as on a machine that does nothing else")
    print("ms: latencies, and processor time of the server per image; cores: how many were kept busy\n")
    print("Closed loop: a slow answer delays the next request, so these latencies leave out who would have waited\n")
    print(markdown([row.cells() for row in closed]))
    if opened:
        print("\nOpen loop: latency from the intended start; late: what the generator itself was late\n")
        print(markdown([row.cells() for row in opened]))
    record = {
        "machine": here,
        "config": config,
        "server": {"backend": model.backend, "precision": model.precision, "max_batch_size": model.max_batch_size},
        "closed_loop": closed,
        "open_loop": opened,
    }
    write_json(config.json, record)
    failed = sum(sum(row.failures.values()) for row in (*closed, *opened))
    if failed:
        print(f"\nFAIL: {failed} requests had no right answer", file=sys.stderr)
    return not failed


main = main_of(LoadConfig, measure, __doc__)

if __name__ == "__main__":
    sys.exit(main())
