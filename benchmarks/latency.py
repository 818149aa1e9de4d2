"""Latency and throughput of bundles' engines in this process, beside plain ONNX Runtime and PyTorch.

All sides get the same uint8 images and float32 latents and the same number of threads, and take turns in short
blocks, so that a change of clock or load meets all. Plain ONNX Runtime runs the same graphs twice: with the options
that the server gives it, and with its own defaults, whose threads spin. Whether the engines are right is what
`python -m export.verify` says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from script import cores, machine, require_positive, run, summary, write_json
from timing import doublings, measure, table

from engine.backends import Backend, open_backend, open_graphs
from engine.bundle import DECODER, ENCODER, Bundle
from export.errors import InputError
from export.verify import require_run
from trainer.extras import require

Images = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """What to measure, and how long."""

    bundle: tuple[Path, ...]
    """Bundle folder; several of one run are measured side by side."""
    run: Path | None = None
    """Run folder that the bundles were built from: adds PyTorch eager, and measures on the run's images."""
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


class DefaultRuntime(Backend):
    """ONNX Runtime with all of its own defaults, but for the number of threads where one is given."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in (ENCODER, DECODER)
        )

    def encode(self, images: Images) -> tuple[Latents, Latents]:
        """Means and log variances."""
        mu, log_var = self._encoder.run(["mu", "log_var"], {"images": images})
        return mu, log_var

    def decode(self, latents: Latents) -> Images:
        """Images."""
        (images,) = self._decoder.run(["images"], {"latents": latents})
        return np.asarray(images)


def open_sides(config: LatencyConfig, bundles: Sequence[Bundle], threads: int) -> tuple[dict[str, Backend], Images]:
    """All sides by name, and images to encode, uint8 [N, S, S, 3]: the run's, or noise without a run."""
    sides: dict[str, Backend] = {_name(bundle): open_backend(bundle, threads) for bundle in bundles}
    first, manifest = bundles[0], bundles[0].manifest
    if config.portable:
        graphs = (first.path / ENCODER, first.path / DECODER)
        sides["portable: onnxruntime fp32"] = open_graphs(
            "onnxruntime", "fp32", *graphs, manifest.max_batch_size, threads=threads
        )
        sides["ONNX Runtime's defaults"] = DefaultRuntime(first.path, config.threads)
    if config.run is None:
        shape = (64, manifest.image_size, manifest.image_size, 3)
        return sides, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    # Engines can be measured alone where there is no torch.
    import torch  # noqa: PLC0415

    from export.proof.reference import NAME, CompiledBackend, EagerBackend  # noqa: PLC0415
    from export.run import Run  # noqa: PLC0415

    torch.set_num_threads(threads)
    trained = Run.load(config.run)
    for bundle in bundles:
        require_run(bundle, config.run, trained.model_sha256)
    sides[NAME] = EagerBackend(trained.model)
    if config.compiled:
        sides["PyTorch compiled BF16"] = CompiledBackend(trained.model)
    return sides, trained.samples


def _name(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return f"{bundle.path.name}: {manifest.backend} {manifest.precision} on {manifest.device}"


def benchmark(config: LatencyConfig) -> bool:
    """Measures, prints the table and writes the JSON."""
    if config.run is not None:
        require("train")
    require_positive(config, "seconds", "threads")
    if config.compiled and config.run is None:
        raise InputError("--compiled: needs the model; give --run RUN")
    bundles = [Bundle.load(path) for path in config.bundle]
    largest = min(bundle.manifest.max_batch_size for bundle in bundles)
    batch_sizes = config.batch_sizes or doublings(largest)
    for size in batch_sizes:
        if not 1 <= size <= largest:
            raise InputError(f"--batch-sizes {size}: these bundles take 1 to {largest} images")
    here = {**machine(), "threads": config.threads or cores()}
    sides, images = open_sides(config, bundles, here["threads"])
    timings = measure(sides, images, bundles[0].directions, batch_sizes, config.seconds)

    print(f"{summary(here)}\n{here['threads']} threads; p50 and p99 in ms, and images/s")
    if here["load"] > here["cores"] / 2:
        print("this machine was busy: PyTorch's threads suffer more from that than the engine's, so measure again")
    print(f"\n{table(timings)}")
    record = {
        "machine": here,
        "bundles": {_name(bundle): asdict(bundle.manifest) for bundle in bundles},
        "seconds": config.seconds,
        "results": [asdict(timing) for timing in timings],
    }
    write_json(config.json, record)
    return True


main = partial(run, LatencyConfig, benchmark, __doc__)

if __name__ == "__main__":
    sys.exit(main())
