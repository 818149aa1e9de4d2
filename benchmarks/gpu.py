"""TensorRT engines on an NVIDIA GPU: made from a bundle, held against PyTorch FP32, timed, reported.

Where the run is, one bundle; then, on the GPU, PyTorch in a Python with torch (this step may be left out), and TensorRT
8.6 to 11 in a Python that needs no torch:

    python -m export.build_engines --run RUN --out BUNDLE --max-batch 256 --encoder plain --decoder plain
    python benchmarks/gpu.py pytorch --run RUN --json FILE
    python benchmarks/gpu.py run --bundle BUNDLE --out FOLDER --report FILE [--pytorch FILE]

The bundles stay in FOLDER. Exit codes: 0 measured, 1 an engine is beyond the tolerances, 2 unusable input.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timing import Timing, doublings, measure, table

from engine.backends import CPU, CUDA, Backend, open_backend, open_graphs
from engine.backends.tensorrt import require_device
from engine.bundle import Bundle
from engine.errors import BackendError
from engine.proof.figures import Report
from engine.proof.opening import load_truth
from export.errors import FAILURES, InputError, report
from trainer.extras import require

TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
"""Kernels of TensorRT's own, so that this needs neither cuBLAS nor cuDNN, which TensorRT 8.6 would take besides."""


def run(options: argparse.Namespace) -> None:
    """Makes a bundle for each precision, times them all, and writes the report.

    Raises:
        InputError: a place can't be written to, or figures of PyTorch can't be read.
        EngineError: the bundle can't be used, there is no GPU, TensorRT refuses all graphs, or an engine is beyond its
            tolerances.
    """
    from export.retarget import RetargetConfig, retarget  # noqa: PLC0415

    rehearsal = options.backend != "tensorrt"
    device = {"gpu": "no GPU, a rehearsal"} if rehearsal else require_device()  # before minutes of building
    if not options.report.parent.is_dir():
        raise InputError(f"--report {options.report}: there is no folder {options.report.parent}; make it first")
    source = Bundle.load(options.bundle)
    truth = load_truth(source)
    timings = _read_timings(options.pytorch)
    made = {}
    for precision in options.precision:
        out = options.out / precision
        flags = {"backend": options.backend, "precision": precision, "max_batch": options.max_batch, "tactics": TACTICS}
        made[precision] = Bundle.load(retarget(RetargetConfig(bundle=options.bundle, out=out, force=True, **flags)))
    sides: dict[str, Backend] = {f"{options.backend} {name}": open_backend(bundle) for name, bundle in made.items()}
    largest = options.max_batch or source.manifest.max_batch_size
    timings = measure(sides, truth.images, source.directions, doublings(largest), options.seconds) + timings
    text = _report(options, device, made, timings)
    options.report.write_text(text, encoding="utf-8")
    print(text)


def time_pytorch(options: argparse.Namespace) -> None:
    """Times the rivals in FP16 at a few batch sizes: PyTorch, eager and compiled, and ONNX Runtime; writes the figures.

    Raises:
        InputError: PyTorch finds no GPU, or the run cannot be used.
    """
    import torch  # noqa: PLC0415
    from gpu_pytorch import GpuBackend  # noqa: PLC0415

    from export.run import Run  # noqa: PLC0415

    if options.device != CPU and not torch.cuda.is_available():
        raise InputError(f"PyTorch {torch.__version__} finds no GPU here; see what nvidia-smi says")
    run = Run.load(options.run)
    names = {"eager": False, "compiled": True} if options.device != CPU else {"eager": False}
    sides: dict[str, Backend] = {
        f"PyTorch {torch.__version__} {name}": GpuBackend(run.model, compiled, options.device)
        for name, compiled in names.items()
    }
    try:
        sides["ONNX Runtime"] = _onnx_runtime(run, options)
    except BackendError as error:
        print(f"ONNX Runtime is left out: {error}")
    sizes = sorted({size for size in (1, 8, 32) if size < options.max_batch} | {options.max_batch})
    timings = measure(sides, run.samples, run.directions, sizes, options.seconds)
    text = json.dumps([asdict(timing) for timing in timings], indent=2)
    options.json.write_text(text + "\n", encoding="utf-8")
    print("\n".join(table(timings)))


def _onnx_runtime(run: Any, options: argparse.Namespace) -> Backend:
    from export.graphs.fp16 import write_half  # noqa: PLC0415
    from export.graphs.trace import write_decoder, write_encoder  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = folder / write_encoder(run.model, "plain", folder, run.model_sha256)
        decoder = folder / write_decoder(run.model, "plain", folder, run.model_sha256)
        for file in (encoder, decoder) if options.device != CPU else ():
            write_half(file, file)
        precision = "fp32" if options.device == CPU else "fp16"
        return open_graphs("onnxruntime", precision, encoder, decoder, options.max_batch, device=options.device)


def _read_timings(path: Path | None) -> list[Timing]:
    if path is None:
        return []
    try:
        return [Timing(**timing) for timing in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--pytorch {path}: {error}; make it with: gpu.py pytorch --run RUN --json FILE") from None


def _report(
    options: argparse.Namespace, device: dict[str, str], made: dict[str, Bundle], timings: Sequence[Timing]
) -> str:
    first = next(iter(made.values())).manifest
    lines = [
        f"# TensorRT engines on {device['gpu']}",
        "",
        f"{datetime.date.today().isoformat()}. "
        + ", ".join(f"{name} {value}" for name, value in device.items())
        + f", Python {platform.python_version()}. The run is `{first.run.get('preset')}`: {first.image_size} pixels, "
        f"{first.latent_dim} latents; up to {first.max_batch_size} images.",
        f"Made with {', '.join(f'{name} {version}' for name, version in first.versions.items())}.",
        "",
        f"    python benchmarks/gpu.py run --bundle BUNDLE --out FOLDER --report FILE --seconds {options.seconds:g}",
        "",
        "## Builds",
        "",
        "| plan | layers | strongly typed | flags | seconds |",
        "|---|---|---|---|---|",
    ]
    for bundle in made.values():
        builder: dict[str, dict[str, Any]] = bundle.manifest.tensorrt.get("builder", {})
        for name, built in builder.items():
            cells = (built["layers"], built["strongly_typed"], ", ".join(built["flags"]) or "-", built["seconds"])
            lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    for precision, bundle in made.items():
        lines += ["", f"## Parity in {precision}", "", "```"]
        lines += [Report.from_json(bundle.manifest.parity).table(), "```"]
    lines += ["", "## Speed", ""]
    lines.append(f"uint8 in and out, host to host; sides in turns, {options.seconds:g} s a cell.")
    lines.append("p50 and p99 in ms, and images/s.")
    return "\n".join([*lines, "", *table(timings), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    pytorch, engines = (
        steps.add_parser(step, formatter_class=argparse.ArgumentDefaultsHelpFormatter) for step in ("pytorch", "run")
    )
    pytorch.add_argument("--run", type=Path, required=True, help="run folder of a finished training")
    pytorch.add_argument("--json", type=Path, required=True, help="file to write the figures to")
    pytorch.add_argument("--max-batch", type=int, default=256, help="largest batch, images")
    engines.add_argument("--bundle", type=Path, required=True, help="bundle to make the engines from")
    engines.add_argument("--out", type=Path, required=True, help="folder for the bundles that are made")
    engines.add_argument("--report", type=Path, required=True, help="Markdown file to write")
    engines.add_argument("--precision", nargs="+", default=["fp16", "fp32"], help="precisions of the engines")
    engines.add_argument("--max-batch", type=int, help="largest batch, images; that of the bundle if left out")
    engines.add_argument("--backend", default="tensorrt", help="onnxruntime with --precision fp32: a rehearsal")
    pytorch.add_argument("--device", default=CUDA, help="cpu: a rehearsal, without the compiled side")
    engines.add_argument("--pytorch", type=Path, help="figures of PyTorch to put beside")
    for step in (pytorch, engines):
        step.add_argument("--seconds", type=float, default=0.5, help="time of each measurement, seconds")
    try:
        options = parser.parse_args(arguments)
        if not options.seconds > 0:
            raise InputError(f"--seconds {options.seconds}: must be above 0")
        require("train" if options.step == "pytorch" else "retarget")
        (time_pytorch if options.step == "pytorch" else run)(options)
    except FAILURES as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
