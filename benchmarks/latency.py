"""Latency and throughput of a bundle's engines in this process, beside PyTorch eager, with parity.

Both sides get the same uint8 images and float32 latents and the same number of threads, and take turns in
short blocks, so that a change of clock or load meets both. Exit code 1 if the engines exceed their tolerances.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from engine.backends import Backend, open_backend
from engine.bundle import Bundle
from engine.errors import EngineError
from engine.latents import edit
from export.errors import InputError, ParityError
from export.parity import Report, compare
from export.versions import versions
from trainer.errors import RunError

OPERATIONS = ("encode", "edit", "decode")

BLOCK_SECONDS = 0.1
"""Length of a side's turn: long beside a call, short beside changes of a machine's clock and load."""
MIN_CALLS = 20
"""Fewest calls that percentiles are taken of, however slow they are."""

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """What to measure, and how long."""

    bundle: Path
    """Bundle folder."""
    run: Path | None = None
    """Run folder that the bundle was built from: adds PyTorch's columns and measures parity anew."""
    json: Path | None = None
    """File to write all figures to."""
    batch_sizes: tuple[int, ...] = ()
    """Images per call; none: 1, 2, 4 ... up to the bundle's largest batch."""
    seconds: float = 1.0
    """Time measured per batch size, operation and side, seconds."""
    threads: int | None = None
    """Compute threads of either side; None: all cores."""


@dataclass(frozen=True)
class Timing:
    """What one side took for one operation at one batch size.

    Attributes:
        calls: Calls that were timed; with fewer than 100, `p99_ms` is little else than the slowest.
        images_per_s: Images of all timed calls by the time that they took.
        mean_ms: Mean duration of a call, ms; likewise the shortest, and percentiles 50, 90 and 99.
    """

    calls: int
    images_per_s: float
    mean_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float], batch_size: int) -> Timing:
        """Sums up the durations of calls."""
        ms = np.asarray(seconds) * 1e3
        figures = [ms.mean(), ms.min(), *np.percentile(ms, [50, 90, 99])]
        return cls(len(ms), batch_size * len(ms) / float(ms.sum()) * 1e3, *map(float, figures))


@dataclass(frozen=True)
class Measurement:
    """One operation at one batch size; `pytorch` is None without a run."""

    batch_size: int
    operation: str
    engine: Timing
    pytorch: Timing | None


@dataclass(frozen=True)
class Contest:
    """Who is measured, on what.

    Attributes:
        bundle: The bundle.
        engine: Its engines.
        pytorch: The model that it was built from, or None.
        samples: Images to encode, uint8 [N, S, S, 3].
    """

    bundle: Bundle
    engine: Backend
    pytorch: Backend | None
    samples: Images

    @classmethod
    def of(cls, bundle: Bundle, run: Path | None, threads: int) -> Contest:
        """Opens both sides; without a run the images are noise.

        Raises:
            InputError: the bundle was not built from this run, or the run cannot be used; likewise RunError.
            EngineError: the engines cannot be opened.
        """
        engine = open_backend(bundle, threads)
        if run is None:
            size = bundle.manifest.image_size
            noise = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)
            return cls(bundle, engine, None, noise)
        # Engines can be measured alone where there is no torch.
        import torch  # noqa: PLC0415

        from export.reference import EagerBackend  # noqa: PLC0415
        from export.run import Run  # noqa: PLC0415

        loaded = Run.load(run)
        if loaded.model_sha256 != bundle.manifest.run.get("model_sha256"):
            raise InputError(f"--run {run}: {bundle.path} was built from another model; build it again from this one")
        torch.set_num_threads(threads)
        return cls(bundle, engine, EagerBackend(loaded.model), loaded.samples)

    def parity(self) -> Report:
        """Parity measured now; without PyTorch, as it was measured at export.

        Raises:
            InputError: the bundle does not say how exact it should be.
        """
        try:
            exported = Report.from_json(self.bundle.manifest.parity)
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.bundle.path}: its manifest has no parity figures; build it again") from error
        if self.pytorch is None:
            return exported
        return compare(
            self.engine,
            self.pytorch,
            self.samples,
            self.bundle.directions,
            batch_size=self.bundle.manifest.max_batch_size,
            tolerances=exported.tolerances,
        )

    def measure(self, operation: str, batch_size: int, seconds: float) -> Measurement:
        """Times one operation on both sides.

        Args:
            operation: One of `OPERATIONS`.
            batch_size: Images per call.
            seconds: Time of the measurement, per side.
        """
        images = np.resize(self.samples, (batch_size, *self.samples.shape[1:]))
        shape = (batch_size, self.bundle.manifest.latent_dim)
        latents = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        moves = [(vector, 1.0) for vector in self.bundle.directions.vectors[:1]]

        def call(side: Backend) -> object:
            if operation == "encode":
                return side.encode(images)
            if operation == "decode":
                return side.decode(latents)
            mu, _ = side.encode(images)
            return side.decode(edit(mu, moves))

        sides = [self.engine] if self.pytorch is None else [self.engine, self.pytorch]
        taken = take_turns([lambda side=side: call(side) for side in sides], seconds)  # type: ignore[misc]
        timings = [Timing.of(durations, batch_size) for durations in taken]
        return Measurement(batch_size, operation, timings[0], timings[1] if self.pytorch else None)


def take_turns(calls: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Makes calls in turn, in blocks, until each was timed for `seconds` and `MIN_CALLS` times.

    Returns:
        Durations of each one's calls, seconds.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    while any(sum(durations) < seconds or len(durations) < MIN_CALLS for durations in taken):
        for call, durations in zip(calls, taken, strict=True):
            call()  # not timed: the other side's data fills the caches, and its threads may still be spinning
            until = time.perf_counter() + BLOCK_SECONDS
            while (start := time.perf_counter()) < until:
                call()
                durations.append(time.perf_counter() - start)
    return taken


def doublings(largest: int) -> list[int]:
    """1, 2, 4 ... and `largest`."""
    return [*(2**power for power in range((largest - 1).bit_length())), largest]


def machine(threads: int) -> dict[str, Any]:
    """Where and when this is measured: CPU, cores, threads, load of the last minute, system, versions, date."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(results: Sequence[Measurement]) -> str:
    """The measurements as text for a screen."""
    with_pytorch = results[0].pytorch is not None
    figures = f"{'p50 ms':>10}{'p99 ms':>10}{'images/s':>10}"
    lines = [f"{'':<15}{'engine':>30}" + (f"{'PyTorch eager FP32':>30}" if with_pytorch else "")]
    lines.append(f"{'batch':>5}  {'':<8}{figures}" + (f"{figures}{'by p50':>10}" if with_pytorch else ""))
    for result in results:
        line = f"{result.batch_size:>5}  {result.operation:<8}{_cells(result.engine)}"
        if result.pytorch is not None:
            line += f"{_cells(result.pytorch)}{result.pytorch.p50_ms / result.engine.p50_ms:>9.2f}x"
        lines.append(line)
    return "\n".join(lines)


def _cells(timing: Timing) -> str:
    return f"{timing.p50_ms:>10.2f}{timing.p99_ms:>10.2f}{timing.images_per_s:>10.0f}"


def check(config: LatencyConfig) -> None:
    """Looks at the flags.

    Raises:
        InputError: names the flag, its value and the mend.
    """
    if not 0 < config.seconds < float("inf"):
        raise InputError(f"--seconds {config.seconds}: must be above 0")
    if config.threads is not None and config.threads < 1:
        raise InputError(f"--threads {config.threads}: must be at least 1")
    if config.json is not None and not config.json.parent.is_dir():
        raise InputError(f"--json {config.json}: there is no folder {config.json.parent}; make it first")


def benchmark(config: LatencyConfig) -> None:
    """Measures, prints the tables and writes the JSON.

    Raises:
        InputError: a flag, the bundle or the run cannot be used; likewise RunError.
        EngineError: the bundle is damaged, or its runtime is missing.
        ParityError: the engines are beyond their tolerances; everything has been printed and written.
    """
    check(config)
    bundle = Bundle.load(config.bundle)
    manifest = bundle.manifest
    batch_sizes = config.batch_sizes or doublings(manifest.max_batch_size)
    for size in batch_sizes:
        if not 1 <= size <= manifest.max_batch_size:
            raise InputError(f"--batch-sizes {size}: this bundle takes 1 to {manifest.max_batch_size} images")
    here = machine(config.threads or len(os.sched_getaffinity(0)))
    contest = Contest.of(bundle, config.run, here["threads"])
    report = contest.parity()
    cases = [(size, operation) for size in batch_sizes for operation in OPERATIONS]
    results = [
        contest.measure(operation, size, config.seconds)
        for size, operation in tqdm(cases, desc="measuring", unit="case", leave=False, disable=None)
    ]

    print(f"{here['cpu']}, {here['cores']} cores, {here['threads']} threads, load {here['load']}, {here['date']}")
    if here["load"] > here["cores"] / 2:
        print("this machine was busy: PyTorch's threads suffer more from that than the engine's, so measure again")
    print(", ".join(f"{name} {version}" for name, version in here["versions"].items()))
    print(f"{bundle.path}: {manifest.backend}, {manifest.precision}, {manifest.image_size} pixels\n")
    print(table(results))
    if contest.pytorch is None:
        print("PyTorch was not measured (give --run); parity is quoted from the export")
    print(f"\n{report.table()}")
    if config.json is not None:
        record = {
            "machine": here,
            "bundle": {
                "backend": manifest.backend,
                "precision": manifest.precision,
                "image_size": manifest.image_size,
                "latent_dim": manifest.latent_dim,
                "max_batch_size": manifest.max_batch_size,
                "files": manifest.files,
                "run": manifest.run,
            },
            "seconds": config.seconds,
            "results": [asdict(result) for result in results],
            "parity": report.to_json(),
            "parity_measured": "now" if contest.pytorch else "at export",
            "parity_holds": not report.failures(),
        }
        config.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    report.require()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 measured, 1 beyond the tolerances, 2 unusable input, 130 interrupted."""
    try:
        benchmark(tyro.cli(LatencyConfig, args=arguments, prog="python benchmarks/latency.py", description=__doc__))
    except ParityError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (InputError, RunError, EngineError, OSError) as error:
        return _fail(str(error), 2)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
