"""TensorRT engines on an NVIDIA GPU: made from a bundle, held against PyTorch FP32, timed, reported.

Where the run is, one bundle; then, on the GPU, PyTorch in a Python with torch (this step may be left out), and TensorRT
8.6 to 11 in a Python that needs no torch:

    python -m export.build_engines --run RUN --out BUNDLE --max-batch 256 --encoder plain --decoder plain
    python benchmarks/gpu.py pytorch --run RUN --json FILE
    python benchmarks/gpu.py run --bundle BUNDLE --out FOLDER --report FILE [--pytorch FILE]
    python benchmarks/gpu.py serve --bundle FOLDER/fp16 --json FILE

The bundles stay in FOLDER. Exit codes: 0 measured, 1 an engine is beyond the tolerances, or a server answers otherwise
than its engine, 2 unusable input.
"""

import datetime
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from script import main_of, require_positive, write_json
from serving.figures import markdown
from serving.process import Server
from timing import Timing, measure, table, take_turns
from tyro.conf import subcommand

from engine.backends import CPU, Backend, Options, open_backend, open_graphs
from engine.backends.base import bucket_sizes
from engine.backends.tensorrt import require_device
from engine.bundle import Bundle
from engine.client import Client
from engine.errors import BackendError, ParityError
from engine.proof.figures import Report
from export.errors import InputError
from trainer.extras import require

TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
"""Kernels of TensorRT's own, so that this needs neither cuBLAS nor cuDNN, which TensorRT 8.6 would take besides."""


@dataclass(frozen=True, kw_only=True)
class PyTorchConfig:
    """Times the rivals in FP16 at a few batch sizes: PyTorch, eager and compiled, and ONNX Runtime."""

    run: Path
    """Run folder of a finished training."""
    json: Path
    """File to write the figures to."""
    max_batch: int = 256
    """Largest batch, images."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: a rehearsal in FP32, without the compiled side."""
    seconds: float = 0.5
    """Time of each measurement, seconds."""


@dataclass(frozen=True, kw_only=True)
class EnginesConfig:
    """Makes a bundle for each precision, times them all, and writes the report."""

    bundle: Path
    """Bundle to make the engines from."""
    out: Path
    """Folder for the bundles that are made."""
    report: Path
    """Markdown file to write."""
    precision: tuple[Literal["fp16", "fp32", "int8"], ...] = ("fp16", "fp32")
    """Precisions of the engines."""
    max_batch: int | None = None
    """Largest batch, images; None: that of the bundle."""
    backend: Literal["tensorrt", "onnxruntime"] = "tensorrt"
    """onnxruntime with --precision fp32: a rehearsal."""
    pytorch: Path | None = None
    """Figures of PyTorch to put beside."""
    seconds: float = 0.5
    """Time of each measurement, seconds."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Times edits by a server, one request after the other, and compares them with those of the same engine here."""

    bundle: Path
    """Bundle folder, proven on this machine."""
    json: Path
    """File to write; the server's log goes beside it."""
    images: tuple[int, ...] = (1, 8, 32)
    """Images per request."""
    seconds: float = 2.0
    """Time of each measurement, seconds."""


def time_engines(config: EnginesConfig) -> None:
    """Makes, times and reports."""
    require_positive(config, "seconds", "max_batch")
    require("retarget")
    from export.retarget import RetargetConfig, retarget  # noqa: PLC0415

    rehearsal = config.backend != "tensorrt"
    device = {"gpu": "no GPU, a rehearsal"} if rehearsal else require_device()  # before minutes of building
    if not config.report.parent.is_dir():
        raise InputError(f"--report {config.report}: there is no folder {config.report.parent}; make it first")
    source = Bundle.load(config.bundle)
    rivals = [] if config.pytorch is None else _read_timings(config.pytorch)
    made: dict[str, Bundle] = {}
    for precision in config.precision:
        wanted = RetargetConfig(
            bundle=config.bundle, out=config.out / precision, backend=config.backend, precision=precision,
            max_batch=config.max_batch, tactics=TACTICS, force=True,
        )  # fmt: skip
        made[precision] = Bundle.load(retarget(wanted))
    sides = {f"{config.backend} {precision}": open_backend(bundle) for precision, bundle in made.items()}
    sizes = bucket_sizes(config.max_batch or source.manifest.max_batch_size)
    timings = measure(sides, source.manifest.image_size, source.directions, sizes, config.seconds) + rivals
    text = _report(config.seconds, device, made, timings)
    config.report.write_text(text, encoding="utf-8")
    print(text)


def time_pytorch(config: PyTorchConfig) -> None:
    """Times the rivals and writes the figures."""
    require_positive(config, "seconds", "max_batch")
    require("train")
    import torch  # noqa: PLC0415
    from pytorch import PyTorchBackend  # noqa: PLC0415

    from export.run import Run  # noqa: PLC0415

    if config.device != CPU and not torch.cuda.is_available():
        raise InputError(f"PyTorch {torch.__version__} finds no GPU here; see what nvidia-smi says")
    run = Run.load(config.run)
    # A CPU without units for FP16 takes tens of times as long: a rehearsal would not end in time.
    dtype = torch.float32 if config.device == CPU else torch.float16
    side = partial(PyTorchBackend, run.model, dtype, device=config.device)
    sides: dict[str, Backend] = {f"PyTorch {torch.__version__} eager": side(compiled=False)}
    if config.device != CPU:
        sides[f"PyTorch {torch.__version__} compiled"] = side(compiled=True)
    try:
        sides["ONNX Runtime"] = _onnx_runtime(run, config)
    except BackendError as error:
        print(f"ONNX Runtime is left out: {error}")
    sizes = sorted({size for size in (1, 8, 32) if size < config.max_batch} | {config.max_batch})
    timings = measure(sides, run.config.model.image_size, run.directions, sizes, config.seconds)
    write_json(config.json, timings)
    print(table(timings))


def _onnx_runtime(run: Any, config: PyTorchConfig) -> Backend:
    from export.graphs.fp16 import write_half  # noqa: PLC0415
    from export.graphs.trace import write_decoder, write_encoder  # noqa: PLC0415

    precision = "fp32" if config.device == CPU else "fp16"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = folder / write_encoder(run.model, "plain", folder, run.model_sha256)
        decoder = folder / write_decoder(run.model, "plain", folder, run.model_sha256)
        for file in (encoder, decoder) if precision == "fp16" else ():
            write_half(file, file)
        options = Options(device=config.device, precision=precision, max_batch_size=config.max_batch)
        return open_graphs(encoder, decoder, options)


def _read_timings(path: Path) -> list[Timing]:
    try:
        return [Timing(**timing) for timing in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--pytorch {path}: {error}; make it with: gpu.py pytorch --run RUN --json FILE") from None


def _report(seconds: float, device: dict[str, str], made: dict[str, Bundle], timings: Sequence[Timing]) -> str:
    first = next(iter(made.values())).manifest
    here, versions = (", ".join(f"{name} {value}" for name, value in of.items()) for of in (device, first.versions))
    built = [
        f"| {name} | {plan['layers']} | {plan['strongly_typed']} | {', '.join(plan['flags'])} | {plan['seconds']} |"
        for bundle in made.values()
        for name, plan in bundle.manifest.tensorrt.get("builder", {}).items()
    ]
    parity = "\n\n".join(
        f"## Parity in {precision}\n\n```\n{Report.from_json(bundle.manifest.parity).table()}\n```"
        for precision, bundle in made.items()
    )
    return f"""\
# TensorRT engines on {device["gpu"]}

{datetime.date.today().isoformat()}. {here}, Python {platform.python_version()}. The run is \
`{first.run.get("preset")}`: {first.image_size} pixels, {first.latent_dim} latents; up to {first.max_batch_size} images.
Made with {versions}.

    python benchmarks/gpu.py run --bundle BUNDLE --out FOLDER --report FILE --seconds {seconds:g}

## Builds

| plan | layers | strongly typed | flags | seconds |
|---|---|---|---|---|
{chr(10).join(built)}

{parity}

## Speed

uint8 in and out, host to host; sides in turns, {seconds:g} s a line.

{table(timings)}
"""


def time_server(config: ServeConfig) -> None:
    """Times edits of one client, a row for each number of images in a request."""
    require_positive(config, "seconds", "images")
    bundle = Bundle.load(config.bundle)
    if not bundle.directions.names:
        raise InputError(f"--bundle {config.bundle}: has no attributes, so that nothing can be edited")
    shape = (max(config.images), bundle.manifest.image_size, bundle.manifest.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    edits = [(bundle.directions.names[0], 1.0)]
    step, backend = bundle.directions.move(edits).step, open_backend(bundle)
    rows = []
    with Server(["-m", "engine", "--bundle", bundle.path.resolve()]) as server, Client(server.target) as client:
        for size in config.images:
            batch = images[:size]
            edited, _ = backend.edit(batch, np.tile(step, (size, 1)))
            difference = np.abs(client.edit(batch, edits).astype(int) - edited).max()
            if difference > 1:
                raise ParityError(f"{size} images: the server's are off by up to {difference} levels")
            taken = take_turns({"": partial(client.edit, batch, edits)}, config.seconds)[""]
            p50, p99 = map(float, np.percentile(taken, [50, 99]) * 1e3)
            rows.append({"images": size, "p50_ms": p50, "p99_ms": p99, "images_per_s": size * len(taken) / sum(taken)})
    config.json.with_suffix(".log").write_text(server.log)
    write_json(config.json, rows)
    print(markdown(rows))


STEPS: dict[type, Callable[[Any], None]] = {
    PyTorchConfig: time_pytorch,
    EnginesConfig: time_engines,
    ServeConfig: time_server,
}
Step = (
    Annotated[PyTorchConfig, subcommand("pytorch")]
    | Annotated[EnginesConfig, subcommand("run")]
    | Annotated[ServeConfig, subcommand("serve")]
)
main = main_of(Step, lambda config: STEPS[type(config)](config), __doc__)

if __name__ == "__main__":
    sys.exit(main())
