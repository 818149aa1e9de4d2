"""Latency and throughput of bundles' engines in this process, beside plain ONNX Runtime and PyTorch, with parity.

All sides get the same uint8 images and float32 latents and the same number of threads, and take turns in short
blocks, so that a change of clock or load meets all. Plain ONNX Runtime runs the same graphs twice: with the options
that the server gives it, and with its own defaults, whose threads spin. With --run parity is measured first, as by
`python -m export.verify BUNDLE --run RUN`, and exit code 1 says that an engine exceeds its tolerances.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from peers.servers.plain import PlainRuntime
from script import machine, main_of, require_positive, summary, write_json
from timing import by_case, measure, table

from engine.backends import Backend, Options, cores, open_backend, open_graphs
from engine.backends.base import bucket_sizes
from engine.bundle import DECODER, ENCODER, Bundle
from engine.proof.figures import Report
from export.errors import InputError
from export.verify import VerifyConfig, built_parity, verify
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

        model = Run.load(config.run).model
        torch.set_num_threads(threads)
        sides[NAME] = EagerBackend(model)
        if config.compiled:
            sides["PyTorch compiled BF16"] = PyTorchBackend(model, torch.bfloat16, compiled=True, device="cpu")
    return sides


def parity_of(bundle: Bundle, config: LatencyConfig, threads: int) -> Report:
    """Parity with the run, measured now; without one as it was measured at export."""
    if config.run is None:
        return built_parity(bundle)
    return verify(VerifyConfig(bundle=bundle.path, run=config.run, threads=threads))


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
    bundles = {_name(bundle): bundle for bundle in map(Bundle.load, config.bundle)}
    largest = min(bundle.manifest.max_batch_size for bundle in bundles.values())
    batch_sizes = config.batch_sizes or bucket_sizes(largest)
    for size in batch_sizes:
        if not 1 <= size <= largest:
            raise InputError(f"--batch-sizes {size}: these bundles take 1 to {largest} images")
    here = {**machine(), "threads": config.threads or cores()}
    parity = {name: parity_of(bundle, config, here["threads"]) for name, bundle in bundles.items()}
    sides = open_sides(config, bundles, here["threads"])
    first = next(iter(bundles.values()))
    timings = measure(sides, first.manifest.image_size, first.directions, batch_sizes, config.seconds)

    print(f"{summary(here)}\n{here['threads']} threads")
    if here["load"] > here["cores"] / 2:
        print("this machine was busy: PyTorch's threads suffer more from that than the engine's, so measure again")
    print(f"\n{table(timings)}")
    if config.run is None:
        print("PyTorch was not measured (give --run); parity is quoted from the export")
    for name, report in parity.items():
        print(f"\n{name}\n{report.table()}")
    record = {
        "machine": here,
        "bundles": {
            name: {**asdict(bundle.manifest), "parity": parity[name].to_json()} for name, bundle in bundles.items()
        },
        "parity_measured": "at export" if config.run is None else "now",
        "seconds": config.seconds,
        "results": [
            {"batch_size": size, "operation": operation, "timings": of_case}
            for (size, operation), of_case in by_case(timings).items()
        ],
    }
    write_json(config.json, record)


main = main_of(LatencyConfig, benchmark, __doc__)

if __name__ == "__main__":
    sys.exit(main())
