"""FP16 engines on an NVIDIA GPU: builds them with TensorRT, holds them against PyTorch FP32, times them, reports.

In steps, as TensorRT's Python may have neither torch nor a network. Where the run and torch are; then, on the GPU, in a
Python with torch (this step may be left out); then in a Python with TensorRT:

    python benchmarks/gpu.py prepare --run RUN --job JOB
    PYTHONPATH=.:JOB/site PYTHON benchmarks/gpu.py pytorch --run RUN --job JOB
    PYTHONPATH=.:JOB/site PYTHON benchmarks/gpu.py run --job JOB --report FILE

The last step needs TensorRT 8.6 to 11, cuda-bindings and numpy, on CPython 3.10 or newer; JOB/site holds what it
imports besides. Exit codes: 0 measured, 1 an engine is beyond the tolerances (the report says which), 2 unusable input.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from gpu_job import DIRECTIONS, EXPECTED, FACTS, Job, Recorder
from gpu_speed import Timing, measure, table

from engine.backends import CUDA, Backend, Options
from engine.backends.buckets import bucket_sizes
from engine.backends.cuda import Cuda
from engine.backends.tensor_rt import TensorRtBackend, require_device
from engine.errors import BackendError, EngineError
from export.errors import InputError, ParityError
from export.parity import TOLERANCES, Stage
from export.place import publish, staging
from export.tensorrt_build import build_plan
from export.truth import Truth
from trainer.errors import TrainerError
from trainer.extras import require

PAIRS: tuple[tuple[Literal["plain", "product"], Literal["plain", "tail", "phases"]], ...] = (
    ("plain", "plain"),
    ("product", "tail"),
    ("product", "phases"),
)
"""Forms of encoder and decoder that are measured together: each of them at least once."""
TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
"""Kernels of TensorRT's own, so that this needs neither cuBLAS nor cuDNN, which TensorRT 8.6 would take besides."""
PYTORCH = "pytorch.json"
IMAGES = 256
"""Images that parity is measured on: as many as the gate asks for, and the job stays small enough to be sent."""


def prepare(run_folder: Path, job: Path, max_batch: int) -> None:
    """Writes the job folder: FP16 graphs in every form, what PyTorch answers, and the packages that travel."""
    import safetensors  # noqa: PLC0415

    from export.graphs import write_decoder, write_encoder  # noqa: PLC0415
    from export.half import write_half  # noqa: PLC0415
    from export.reference import NAME, EagerBackend  # noqa: PLC0415
    from export.run import Run  # noqa: PLC0415
    from export.versions import versions  # noqa: PLC0415

    if job.exists():
        raise InputError(f"--job {job}: exists already; remove it, or name another folder")
    run = Run.load(run_folder)
    with staging(job, "--job") as folder:
        full = folder / "full"
        full.mkdir()
        for encoder in sorted({pair[0] for pair in PAIRS}):
            write_encoder(run.model, encoder, full, run.model_sha256)
        for decoder in sorted({pair[1] for pair in PAIRS}):
            write_decoder(run.model, decoder, full, run.model_sha256)
        for path in sorted(full.iterdir()):
            write_half(path, folder / path.name)
        shutil.rmtree(full)
        recorder = Recorder(EagerBackend(run.model))
        Truth(NAME, recorder, run.samples[:IMAGES], run.directions, batch_size=max_batch)
        recorder.save(folder / EXPECTED)
        run.directions.save(folder / DIRECTIONS)
        facts = {
            "truth": NAME,
            "preset": run.config.preset,
            "model": {**asdict(run.config.model), "sha256": run.model_sha256},
            "max_batch": max_batch,
            "versions": versions(),
        }
        (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        # Its compiled part is the same for every CPython from 3.10 on.
        packages = Path(safetensors.__file__).parent
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(packages, folder / "site" / "safetensors", ignore=ignored)
        publish(folder, job, force=False, flag="--job")
    print(f"{job}: {sum(path.stat().st_size for path in job.rglob('*') if path.is_file()) / 2**20:.1f} MiB")


def build(job: Job, folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Builds a plan of every graph of the job; returns the settings, and why others were refused, by graph."""
    folder.mkdir(parents=True, exist_ok=True)
    built, refused = {}, {}
    for graph in sorted(job.path.glob("*.onnx")):
        try:
            built[graph.name] = build_plan(
                graph,
                folder / f"{graph.stem}.plan",
                max_batch=job.facts["max_batch"],
                timing_cache=folder / "timing.cache",
                say=print,
                tactics=TACTICS,
            )
        except BackendError as error:
            refused[graph.name] = str(error)
            print(f"refused: {error}")
    return built, refused


def run(job: Job, folder: Path, seconds: float, report: Path) -> bool:
    """Builds, checks and times the engines, and writes the report; returns whether all are within the tolerances.

    Raises:
        BackendError: there is no GPU, or TensorRT refuses so many graphs that no pair is left.
    """
    device = {**require_device(), "driver's CUDA": _cuda_version()}
    built, refused = build(job, folder)
    largest = int(job.facts["max_batch"])
    pairs = {f"{encoder} + {decoder}": _plans(folder, encoder, decoder) for encoder, decoder in PAIRS}
    pairs = {name: plans for name, plans in pairs.items() if all(f"{plan.stem}.onnx" in built for plan in plans)}
    if not pairs:
        raise BackendError(f"no encoder and decoder were built: {'; '.join(refused.values())}")
    options = Options(backend="tensorrt", device=CUDA, precision="fp16", max_batch_size=largest)
    sides: dict[str, Backend] = {name: TensorRtBackend(*plans, options) for name, plans in pairs.items()}
    stages = {name: job.truth.compare(side, "FP16 plans", TOLERANCES["fp16"]) for name, side in sides.items()}
    for name, stage in stages.items():
        print(stage.table(name))
    first = next(iter(pairs))
    sides[f"{first}, without CUDA graphs"] = TensorRtBackend(*pairs[first], options, cuda_graphs=False)
    timings = measure(sides, job.images, job.directions, bucket_sizes(largest), seconds)
    if (job.path / PYTORCH).is_file():
        timings += [Timing(**timing) for timing in json.loads((job.path / PYTORCH).read_text(encoding="utf-8"))]
    text = _report(job, device=device, built=built, refused=refused, stages=stages, timings=timings, seconds=seconds)
    report.write_text(text, encoding="utf-8")
    print(text)
    return not any(stage.failures() for stage in stages.values())


def time_pytorch(run_folder: Path, job: Job, seconds: float) -> None:
    """Times PyTorch in FP16, eager and compiled, at a few batch sizes, and leaves the figures in the job folder.

    Raises:
        InputError: PyTorch finds no GPU, or the run cannot be used.
    """
    import torch  # noqa: PLC0415
    from gpu_pytorch import GpuBackend  # noqa: PLC0415

    from export.run import Run  # noqa: PLC0415

    if not torch.cuda.is_available():
        raise InputError(f"PyTorch {torch.__version__} finds no GPU here; see what nvidia-smi says")
    model = Run.load(run_folder).model
    names = {f"PyTorch {torch.__version__} eager": False, f"PyTorch {torch.__version__} compiled": True}
    sides: dict[str, Backend] = {name: GpuBackend(model, compiled) for name, compiled in names.items()}
    sizes = sorted({size for size in (1, 8, 32) if size < job.facts["max_batch"]} | {job.facts["max_batch"]})
    timings = measure(sides, job.images, job.directions, sizes, seconds)
    text = json.dumps([asdict(timing) for timing in timings], indent=2)
    (job.path / PYTORCH).write_text(text + "\n", encoding="utf-8")
    print("\n".join(table(timings)))


def _plans(folder: Path, encoder: str, decoder: str) -> tuple[Path, Path]:
    def plan(graph: str, form: str) -> Path:
        return folder / (f"{graph}.plan" if form == "plain" else f"{graph}.{form}.plan")

    return plan("encoder", encoder), plan("decoder", decoder)


def _cuda_version() -> str:
    version = int(Cuda().call("cudaDriverGetVersion"))
    return f"{version // 1000}.{version % 1000 // 10}"


def _report(
    job: Job,
    *,
    device: dict[str, str],
    built: dict[str, dict[str, Any]],
    refused: dict[str, str],
    stages: dict[str, Stage],
    timings: Sequence[Timing],
    seconds: float,
) -> str:
    model = job.facts["model"]
    lines = [
        f"# FP16 engines on {device['gpu']}",
        "",
        f"{datetime.date.today().isoformat()}. "
        + ", ".join(f"{name} {value}" for name, value in device.items())
        + f", Python {platform.python_version()}. The run is `{job.facts['preset']}`: {model['image_size']} pixels, "
        f"{model['latent_dim']} latents, channels {model['channels']}; up to {job.facts['max_batch']} images.",
        f"Exported with {', '.join(f'{name} {version}' for name, version in job.facts['versions'].items())}.",
        "",
        f"    python benchmarks/gpu.py prepare --run RUN --job JOB --max-batch {job.facts['max_batch']}",
        f"    PYTHONPATH=.:JOB/site python benchmarks/gpu.py run --job JOB --report FILE --seconds {seconds:g}",
        "",
        "## Builds",
        "",
        "| graph | layers | strongly typed | flags | seconds |",
        "|---|---|---|---|---|",
    ]
    for name, settings in built.items():
        cells = (
            settings["layers"],
            settings["strongly_typed"],
            ", ".join(settings["flags"]) or "-",
            settings["seconds"],
        )
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    lines += [f"- {name} was refused: {reason}" for name, reason in refused.items()]
    lines += [
        "",
        f"## Parity with {job.truth.what}, {len(job.images)} real images and as many random latents",
        "",
        "```",
    ]
    lines += [stage.table(name) for name, stage in stages.items()]
    lines += ["```", "", "## Speed", ""]
    lines.append(
        f"uint8 in and out, host to host; sides in turns, {seconds:g} s a cell. p50 and p99 in ms, and images/s."
    )
    lines += ["", *table(timings), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    # argparse, as TensorRT's Python has nothing better.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for step in ("prepare", "pytorch", "run"):
        command = steps.add_parser(step, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_argument("--job", type=Path, required=True, help="folder of graphs and expected results")
        if step != "run":
            command.add_argument("--run", type=Path, required=True, help="run folder of a finished training")
        if step == "prepare":
            command.add_argument("--max-batch", type=int, default=256, help="largest batch, images")
        if step != "prepare":
            command.add_argument("--seconds", type=float, default=0.5, help="time of each measurement, seconds")
        if step == "run":
            command.add_argument("--plans", type=Path, default=Path("plans"), help="folder for plans and timing cache")
            command.add_argument("--report", type=Path, required=True, help="Markdown file to write")
    try:
        options = parser.parse_args(arguments)
        if options.step != "run":
            require("train")
        return _dispatch(options)
    except ParityError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (InputError, TrainerError, EngineError, OSError) as error:
        return _fail(str(error), 2)


def _dispatch(options: argparse.Namespace) -> int:
    if options.step == "prepare":
        if options.max_batch < 1:
            raise InputError(f"--max-batch {options.max_batch}: must be at least 1")
        prepare(options.run, options.job, options.max_batch)
        return 0
    if not options.seconds > 0:
        raise InputError(f"--seconds {options.seconds}: must be above 0")
    if options.step == "pytorch":
        time_pytorch(options.run, Job.load(options.job), options.seconds)
        return 0
    require_device()  # before minutes of building
    if not options.report.parent.is_dir():
        raise InputError(f"--report {options.report}: there is no folder {options.report.parent}; make it first")
    exact = run(Job.load(options.job), options.plans, options.seconds, options.report)
    return 0 if exact else _fail("an engine is beyond the tolerances; see the report", 1)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
