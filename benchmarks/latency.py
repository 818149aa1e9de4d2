"""Latency and throughput of bundles' engines in this process, beside plain ONNX Runtime and PyTorch, with parity.

All sides get the same uint8 images and float32 latents and the same number of threads, and take turns in short
blocks, so that a change of clock or load meets all. Plain ONNX Runtime runs the same graphs twice: with the options
that the server gives it, and with its own defaults, whose threads spin. Exit code 1 if an engine exceeds its
tolerances.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from peers.servers.plain import PlainRuntime
from script import machine, require_positive, run, summary, write_json
from timing import by_case, measure, table

from engine.backends import Backend, Options, cores, open_backend, open_graphs
from engine.backends.base import bucket_sizes
from engine.bundle import DECODER, ENCODER, Bundle
from engine.proof.figures import Report
from engine.proof.opening import tolerances_of
from engine.proof.truth import Truth
from export.errors import InputError
from export.proof.judge import NO_RUN, Trial, describe
from export.verify import built_parity, require_run, run_truth
from trainer.extras import require


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """What to measure, and how long."""

    bundle: tuple[Path, ...]
    """Bundle folder; several of one run are measured side by side."""
    run: Path | None = None
    """Run folder that the bundles were built from: adds PyTorch eager and measures parity anew."""
    compiled: bool = False
    """Add PyTorch compiled in bfloat16 (needs --run and a C++ compiler; a minute for each batch size)."""
    portable: bool = True
    """Add the first bundle's portable graphs by ONNX Runtime in FP32, with the server's options and with its own."""
    json: Path | None = None
    """File to write all figures to."""
    batch_sizes: tuple[int, ...] = ()
    """Images per call; none: 1, 2, 4 ... up to the smallest of the bundles' largest batches."""
    seconds: float = 1.0
    """Time measured per batch size, operation and side, seconds."""
    threads: int | None = None
    """Compute threads of each side; None: all cores."""


def held_out(bundles: Sequence[Bundle], run: Path) -> tuple[Truth, Trial | str]:
    """What parity is measured against, and edits for the run's classifier, or why there are none."""
    # INT8 was calibrated on half of the run's images: if any bundle has it, all are measured on the others.
    quantised = (bundle for bundle in bundles if bundle.manifest.precision == "int8")
    truth, trial = run_truth(next(quantised, bundles[0]), run)
    for bundle in bundles[1:]:
        require_run(bundle, run, bundles[0].manifest.run.get("model_sha256"))
    return truth, trial


def open_sides(config: LatencyConfig, bundles: Mapping[str, Bundle], threads: int) -> dict[str, Backend]:
    """All sides by name; those of the bundles come first."""
    sides: dict[str, Backend] = {name: open_backend(bundle, threads) for name, bundle in bundles.items()}
    if config.portable:
        first = next(iter(bundles.values()))
        options = Options(max_batch_size=first.manifest.max_batch_size, threads=threads)
        sides["portable: onnxruntime fp32"] = open_graphs(first.path / ENCODER, first.path / DECODER, options)
        sides["ONNX Runtime's defaults"] = PlainRuntime(first.path, config.threads)
    if config.run is not None:
        # Engines can be measured alone where there is no torch.
        import torch  # noqa: PLC0415
        from pytorch import PyTorchBackend  # noqa: PLC0415

        from export.proof.reference import NAME, EagerBackend  # noqa: PLC0415
        from export.run import Run  # noqa: PLC0415

        torch.set_num_threads(threads)
        model = Run.load(config.run).model
        sides[NAME] = EagerBackend(model)
        if config.compiled:
            sides["PyTorch compiled BF16"] = PyTorchBackend(model, torch.bfloat16, compiled=True, device="cpu")
    return sides


def parity_of(name: str, bundle: Bundle, side: Backend, truth: Truth, trial: Trial | str) -> Report:
    """Parity of a bundle's engine, measured now."""
    largest = bundle.manifest.max_batch_size
    stage = truth.compare(side, name, tolerances_of(bundle), largest)
    if not isinstance(trial, str):
        stage = replace(stage, judged=trial.judge(side, largest))
    return Report(truth.what, len(truth.images), describe(trial), {"engine": stage})


def _name(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return f"{bundle.path.name}: {manifest.backend} {manifest.precision} on {manifest.device}"


def benchmark(config: LatencyConfig) -> None:
    """Measures, prints the tables and writes the JSON."""
    if config.run is not None:
        require("train")
    require_positive(config, "seconds", "threads")
    if config.compiled and config.run is None:
        raise InputError("--compiled: needs the model; give --run RUN")
    bundles = [Bundle.load(path) for path in config.bundle]
    largest = min(bundle.manifest.max_batch_size for bundle in bundles)
    batch_sizes = config.batch_sizes or bucket_sizes(largest)
    for size in batch_sizes:
        if not 1 <= size <= largest:
            raise InputError(f"--batch-sizes {size}: these bundles take 1 to {largest} images")
    here = {**machine(), "threads": config.threads or cores()}
    named = {_name(bundle): bundle for bundle in bundles}
    truth, trial = (None, NO_RUN) if config.run is None else held_out(bundles, config.run)
    sides = open_sides(config, named, here["threads"])
    if truth is None:
        size = bundles[0].manifest.image_size
        images = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)
        reports = {name: built_parity(bundle) for name, bundle in named.items()}
    else:
        images = truth.images
        reports = {name: parity_of(name, bundle, sides[name], truth, trial) for name, bundle in named.items()}
    timings = measure(sides, images, bundles[0].directions, batch_sizes, config.seconds)

    print(f"{summary(here)}\n{here['threads']} threads")
    if here["load"] > here["cores"] / 2:
        print("this machine was busy: PyTorch's threads suffer more from that than the engine's, so measure again")
    print(f"\n{table(timings)}")
    if truth is None:
        print("PyTorch was not measured (give --run); parity is quoted from the export")
    for name, parity in reports.items():
        print(f"\n{name}\n{parity.table()}")
    record = {
        "machine": here,
        "bundles": {
            name: {**asdict(bundle.manifest), "parity": reports[name].to_json()} for name, bundle in named.items()
        },
        "seconds": config.seconds,
        "results": [
            {"batch_size": size, "operation": operation, "timings": {name: asdict(one) for name, one in sides.items()}}
            for (size, operation), sides in by_case(timings).items()
        ],
        "parity_measured": "now" if truth else "at export",
        "parity_holds": not any(stage.failures() for parity in reports.values() for stage in parity.stages.values()),
    }
    write_json(config.json, record)
    for parity in reports.values():
        parity.require()


main = partial(run, LatencyConfig, benchmark, __doc__)

if __name__ == "__main__":
    sys.exit(main())
