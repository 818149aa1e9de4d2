"""Builds a bundle from a run: ONNX graphs, engines, the parity gate, the manifest.

Nothing appears at --out before everything has been built, measured and verified.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("train")  # before what needs it is imported

import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import tyro

from engine.backends import BACKENDS, DEVICE_RULE, is_device, kind_of, open_backend, warm_up
from engine.backends.tensor_rt import DEFAULT_TARGETS, TARGETS
from engine.bundle import (
    DECODER,
    DIRECTIONS,
    ENCODER,
    FORMAT_VERSION,
    MANIFEST,
    PROVEN,
    UNPROVEN,
    Bundle,
    Manifest,
    Preprocessing,
    sha256_of,
)
from engine.errors import BackendError
from engine.version import tell_version
from export.candidate import Candidate
from export.contest import RULE, Entry, rank, table
from export.errors import FAILURES, InputError, ParityError
from export.errors import report as report_error
from export.forms import DECODER_FORMS, ENCODER_FORMS, PLAIN, DecoderForm, EncoderForm
from export.gate import Gate, Overrides
from export.judgement import judge_of
from export.parity import Report
from export.place import check_apart, check_free, check_place, publish, require_space, staging
from export.precision import (
    INT8_ENCODERS,
    split_samples,
    write_edit_plan,
    write_graphs,
    write_plans,
    write_reduced,
)
from export.prior import check_prior, copy_prior
from export.reference import NAME, EagerBackend
from export.run import Run
from export.support import AUTO, Support
from export.tensorrt_build import layers_of
from export.triton import FLAG as TRITON_FLAG
from export.triton import write_triton
from export.truth import Truth
from export.versions import cpu_model, versions
from trainer.run_folder import MODEL

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What to build, from what, and how exact it must be.

    What is left at auto is decided by a contest of a few seconds: each candidate encodes and decodes on this machine,
    at batch 1 and at --max-batch, and the best of those that pass the parity gate is built.
    """

    run: Path
    """Run folder of a finished training."""
    out: Path
    """Bundle folder to write; must not exist yet, unless with --force."""
    backend: Literal["auto", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"] = "auto"
    """Runtime that will serve the bundle: onnxruntime (on the CPU fp32, int8; on a GPU fp32, fp16), openvino (CPU;
    fp32, bf16, int8), tensorrt (GPU; fp32, fp16, int8; keeps its timing cache beside the bundle, in OUT.timing.cache)
    or tensorrt-rtx (the same; by name it is built where no GPU is, too, and its bundle is then unproven)."""
    device: str = "auto"
    """Where the engines will compute: auto, cpu, cuda, or one of several GPUs of this machine, such as cuda:1."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Arithmetic of the engines: fp32 anywhere, bf16 where the CPU has units for it, fp16 on a GPU; int8 is calibrated
    on half of the run's held-out images (parity is measured on the others), and auto never takes it."""
    encoder: Literal["auto"] | EncoderForm = "auto"
    """Exact form of the encoder; product: its last convolution as a matrix product."""
    decoder: Literal["auto"] | DecoderForm = "auto"
    """Exact form of the decoder; tail: first layers merged, last one on half the side; phases: the one before too."""
    split: Literal["auto", "yes", "no"] = "auto"
    """Whether each thread computes a share of a batch alone (OpenVINO), or all compute the whole batch together."""
    compute_capability: tuple[str, ...] = ()
    """GPUs that tensorrt-rtx builds for, such as 8.9 12.0; none: 8.0, 8.6, 8.9, 12.0 and newer."""
    hardware_compatibility: Literal["none", "same-compute-capability", "ampere-plus"] = "none"
    """Which other GPUs a plan of tensorrt is for, at the cost of some kernels; it is proven on the one that builds."""
    max_batch: int = 32
    """Largest batch that the engines take, images."""
    threads: int | None = None
    """Compute threads of the engines while they are measured; None: all cores."""
    latent_tolerance: float | None = None
    """Largest error of mu and log_var against PyTorch FP32, as a share of their spread; None: the precision's."""
    level_tolerance: int | None = None
    """Largest difference of any pixel against PyTorch FP32, 8-bit levels; None: the precision's."""
    psnr_tolerance: float | None = None
    """Smallest PSNR of images against PyTorch FP32, dB; None: the precision's."""
    judged_tolerance: float | None = None
    """Smallest share of edits in which the run's classifier sees what it sees in those of PyTorch FP32; None: 0.99."""
    triton: Path | None = None
    """Also write a model repository for NVIDIA's Triton Inference Server to this folder, which must not exist yet."""
    force: bool = False
    """Replace the bundle that is at --out; only ever a bundle."""
    dry_run: bool = False
    """Check everything, print the resolved configuration and the candidates, and stop."""

    def __post_init__(self) -> None:
        if self.device != AUTO and not is_device(self.device):
            raise InputError(f"--device {self.device}: {DEVICE_RULE}")
        for flag, value, least in (
            ("max-batch", self.max_batch, 1),
            ("latent-tolerance", self.latent_tolerance, 0),
            ("level-tolerance", self.level_tolerance, 0),
            ("psnr-tolerance", self.psnr_tolerance, 0),
            ("judged-tolerance", self.judged_tolerance, 0),
            ("threads", self.threads, 1),
        ):
            if value is not None and not value >= least:
                raise InputError(f"--{flag} {value}: must be at least {least}")
        for target in self.compute_capability:
            if target not in TARGETS:
                raise InputError(
                    f"--compute-capability {target}: TensorRT for RTX builds for {', '.join(TARGETS)}; "
                    "other GPUs, such as H100 and H200 (9.0), are for --backend tensorrt, on that machine"
                )
        if self.compute_capability and self.backend not in ("auto", "tensorrt-rtx"):
            raise InputError(
                f"--compute-capability: --backend {self.backend} builds for this machine; take --backend tensorrt-rtx"
            )

        if self.hardware_compatibility != "none" and self.backend != "tensorrt":
            raise InputError(
                f"--hardware-compatibility {self.hardware_compatibility}: only --backend tensorrt has that choice; "
                "tensorrt-rtx builds for several GPUs by itself (--compute-capability)"
            )

    def resolve(self) -> BuildConfig:
        """The same configuration with the number of threads filled in."""
        return dataclasses.replace(self, threads=self.threads or len(os.sched_getaffinity(0)))

    def candidates(self, support: Support) -> list[Candidate]:
        """Everything that the flags leave to choose from.

        Raises:
            InputError: nothing is left.
        """
        found = [
            Candidate(*option, encoder, decoder, split)
            for option in support.choose(self.backend, self.device, self.precision)
            if not (option.backend == "tensorrt-rtx" and self.triton)
            for split in self._splits(option.backend)
            for encoder in self._encoders(option.precision, option in support.here)
            for decoder in self._decoders(option in support.here)
        ]
        if not found and self.triton:
            raise InputError(f"{TRITON_FLAG}: Triton runs no plans of TensorRT for RTX; take --backend tensorrt")
        if not found:
            if self.encoder != "auto" and self.precision == "int8":
                raise InputError(f"--encoder {self.encoder}: int8 takes only {', '.join(INT8_ENCODERS)}")
            raise InputError("--split yes: only openvino splits a batch over its threads; add --backend openvino")
        return found

    def _encoders(self, precision: str, runs: bool) -> tuple[EncoderForm, ...]:
        if self.encoder == "auto" and not runs:
            return (PLAIN,)  # no contest without a GPU
        forms = INT8_ENCODERS if precision == "int8" else ENCODER_FORMS
        return tuple(form for form in forms if self.encoder in ("auto", form))

    def _decoders(self, runs: bool) -> tuple[DecoderForm, ...]:
        if self.decoder != "auto":
            return (self.decoder,)
        return DECODER_FORMS if runs else (PLAIN,)

    def _splits(self, backend: str) -> tuple[bool, ...]:
        if backend != "openvino":
            return () if self.split == "yes" else (False,)
        if self.split == "auto":
            return (False, True) if self.threads != 1 and self.max_batch > 1 else (False,)
        return (self.split == "yes",)


def build(config: BuildConfig, say: Say = print, stopped: Callable[[], bool] = lambda: False) -> Path:
    """Builds a bundle.

    Args:
        config: What to build.
        say: Takes each line about the progress, and the tables of contest and parity.
        stopped: Asked once more before the bundle gets its name; True gives up.

    Returns:
        The bundle folder.

    Raises:
        InputError: a flag, the run folder or the place for the bundle cannot be used.
        RunError: there is no run at `config.run`, or its configuration or weights cannot be read.
        EngineError: a runtime is not installed, or refuses the graphs.
        ParityError: the engines differ from PyTorch by more than the tolerances. Nothing is written.
        KeyboardInterrupt: `stopped` said so. Nothing is written.
    """
    config = config.resolve()
    support, candidates, run = _check(config)
    with staging(config.out) as folder:
        say(f"writing ONNX graphs of {config.run} ({run.config.model.image_size} pixels)")
        write_graphs(run, candidates, folder)
        shutil.copyfile(config.run / DIRECTIONS, folder / DIRECTIONS)
        copy_prior(run, folder)
        model = EagerBackend(run.model)

        samples, calibration_images = split_samples(run.samples, config.precision)
        say(f"measuring parity on {len(samples)} images")
        judge = judge_of(config.run, run.resolved.get("data_fingerprint"))
        truth = Truth(NAME, model, samples, run.directions, batch_size=config.max_batch, judge=judge)
        say(f"edits judged: {truth.judge}")
        gate = _gate(config, folder, truth, say)
        gate.require_portable()

        write_reduced(run, candidates, folder, model=model, calibration_images=calibration_images, say=say)
        building: dict[str, Any] = {
            "max_batch": config.max_batch,
            "timing_cache": config.out.with_name(f"{config.out.name}.timing.cache"),
            "compute_capabilities": config.compute_capability,
            "compatibility": config.hardware_compatibility,
            "say": say,
        }
        candidates, plans = write_plans(candidates, folder, **building)
        runs = candidates[0].option in support.here  # what doesn't has no rival
        entries = _contest(config, run, candidates, folder, say)
        for reason in support.why_not(config.backend, config.device, config.precision) if entries else ():
            say(f"not in the contest: {reason}")

        def complete(candidate: Candidate) -> None:
            plans.update(write_edit_plan(candidate, folder, **building))

        winner, report, rejected = _first_exact(gate, entries, candidates, runs=runs, say=say, complete=complete)
        chosen = _chosen(entries, rejected, config.threads or 1) if entries else {}
        _drop_others(folder, winner)

        manifest = _manifest(
            config,
            run,
            folder,
            winner=winner,
            chosen=chosen,
            report=report,
            tensorrt=_tensorrt(config, winner, plans),
            proof={"status": PROVEN} if runs else {"status": UNPROVEN, "reason": _why_not_run(winner)},
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        bundle = Bundle.load(folder)
        if runs:
            warm_up(open_backend(bundle, config.threads, winner.device), manifest)
        if stopped():
            raise KeyboardInterrupt
        if config.triton is not None:
            write_triton(bundle, config.triton)
        publish(folder, config.out, force=config.force)
    say(f"bundle: {config.out} ({', '.join(sorted(manifest.files))}), {winner}")
    if not runs:
        say(f"unproven: {manifest.proof['reason']}; the graphs agree with PyTorch, and nobody has run the plans")
    return config.out


def _check(config: BuildConfig) -> tuple[Support, list[Candidate], Run]:
    """Everything that can be known to fail before anything is written."""
    check_place(config.out, config.force)
    if config.triton is not None:
        check_free(config.triton, TRITON_FLAG)
        check_apart(config.out, config.triton, TRITON_FLAG)
    support = Support.find(config.device)
    candidates = config.candidates(support)
    run = Run.load(config.run)
    check_prior(run)
    if config.precision == "int8" and len(run.samples) < 4:
        raise InputError(
            f"{config.run} holds {len(run.samples)} images: --precision int8 needs 4 to calibrate and measure"
        )
    names = {name for each in candidates for name in (*each.portable, *each.graphs, *each.files, each.edit)}
    # A graph holds about half of the weights.
    require_space(config.out.parent, len({ENCODER, DECODER, *names}) * (config.run / MODEL).stat().st_size // 2)
    return support, candidates, run


def _gate(config: BuildConfig, folder: Path, truth: Truth, say: Say) -> Gate:
    overrides = Overrides(
        config.latent_tolerance, config.level_tolerance, config.psnr_tolerance, config.judged_tolerance
    )
    return Gate(
        folder,
        truth,
        max_batch=config.max_batch,
        threads=config.threads or 1,
        tolerances=lambda _, precision: overrides.of(precision),
        say=say,
    )


def _tensorrt(config: BuildConfig, winner: Candidate, plans: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of plans: what they are bound to, and how they were built."""
    if BACKENDS[winner.backend].plan is None:
        return {}
    from engine.backends.tensor_rt import load_tensorrt, require_device  # noqa: PLC0415

    device: dict[str, Any]
    if winner.backend == "tensorrt-rtx":
        targets = list(config.compute_capability or DEFAULT_TARGETS)
        device = {"tensorrt-rtx": str(load_tensorrt("tensorrt-rtx").__version__), "compute_capabilities": targets}
    else:
        compatibility = config.hardware_compatibility
        device = {**require_device(winner.backend, winner.device), "hardware_compatibility": compatibility}
    return {"device": device, "builder": {name: plans[name] for name in (*winner.files, winner.edit) if name}}


def _why_not_run(winner: Candidate) -> str:
    from engine.backends.tensor_rt import require_device  # noqa: PLC0415

    try:
        require_device(winner.backend, winner.device)
    except BackendError as error:
        return str(error).partition(";")[0]
    return "no engine was run"


def _contest(config: BuildConfig, run: Run, candidates: list[Candidate], folder: Path, say: Say) -> list[Entry]:
    """The candidates with their times, best first; empty if there is nothing to choose."""
    if len(candidates) == 1:
        return []
    say(f"measuring {len(candidates)} candidates, {config.threads} threads")
    entries = rank(candidates, folder, run.config.model, max_batch=config.max_batch, threads=config.threads or 1)
    say(table(entries))
    return entries


def _first_exact(
    gate: Gate,
    entries: list[Entry],
    candidates: list[Candidate],
    *,
    runs: bool,
    say: Say,
    complete: Callable[[Candidate], None],
) -> tuple[Candidate, Report, dict[Candidate, str]]:
    """The first candidate that passes the gate, its report, and why those before it did not.

    Args:
        gate: What they must pass.
        entries: The contest, best first; empty if there was none.
        candidates: All of them.
        runs: Whether they run here.
        say: Takes why one is out.
        complete: Builds what only a candidate that may win needs.

    Raises:
        ParityError: none passes; says why the best one does not.
        BackendError: the best one can't be completed, and no other passes.
    """
    first: ParityError | BackendError | None = None
    rejected: dict[Candidate, str] = {}
    for candidate in [entry.candidate for entry in entries] or candidates:
        try:
            complete(candidate)
            report = gate.check(
                candidate.backend, candidate.precision, candidate.engine, device=candidate.device, runs=runs
            )
            return candidate, report, rejected
        except (ParityError, BackendError) as error:
            first = first or error
            rejected[candidate] = str(error)
            say(f"{candidate}: {error}")
    assert first is not None, "there is a candidate"
    raise first


def _chosen(entries: list[Entry], rejected: dict[Candidate, str], threads: int) -> dict[str, Any]:
    return {
        "rule": RULE,
        "cpu": cpu_model(),
        "threads": threads,
        "candidates": [{**entry.to_json(), "rejected": rejected.get(entry.candidate)} for entry in entries],
    }


def _drop_others(folder: Path, winner: Candidate) -> None:
    """Removes the graphs and plans of other candidates; the portable graphs stay."""
    files = [*winner.files, *([winner.edit] if winner.edit else [])]
    kept = {ENCODER, DECODER, *winner.portable, *winner.graphs, *files, *(layers_of(Path(each)).name for each in files)}
    for path in (*folder.glob("*.onnx"), *folder.glob("*.plan"), *folder.glob("*.layers.json")):
        if path.name not in kept:
            path.unlink()


def _manifest(
    config: BuildConfig,
    run: Run,
    folder: Path,
    *,
    winner: Candidate,
    chosen: dict[str, Any],
    report: Report,
    tensorrt: dict[str, Any],
    proof: dict[str, Any],
) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        image_size=run.config.model.image_size,
        latent_dim=run.config.model.latent_dim,
        preprocessing=Preprocessing.of(run.config.frame),
        attributes=run.directions.names,
        kinds=run.directions.kinds,
        backend=winner.backend,
        device=kind_of(winner.device),
        precision=winner.precision,
        engine=dataclasses.replace(winner.engine, chosen=chosen),
        max_batch_size=config.max_batch,
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        parity=report.to_json(),
        versions=versions(),
        run={
            "preset": run.config.preset,
            "steps": run.resolved.get("steps"),
            "model_sha256": run.model_sha256,
            # What the data was, not where: a bundle travels.
            "data": {
                "fingerprint": run.resolved.get("data_fingerprint"),
                "images": run.resolved.get("images"),
            },
        },
        tensorrt=tensorrt,
        proof=proof,
    )


def _dry_run(config: BuildConfig) -> dict[str, Any]:
    """Checks what `build` checks first; returns the resolved configuration and what it would build from."""
    config = config.resolve()
    _, candidates, run = _check(config)
    return {
        "config": dataclasses.asdict(config),
        "candidates": [str(candidate) for candidate in candidates],
        "model": {**dataclasses.asdict(run.config.model), "sha256": run.model_sha256},
        "attributes": run.directions.names,
        "samples": len(run.samples),
    }


def _next(config: BuildConfig) -> str:
    manifest = Manifest.from_json((config.out / MANIFEST).read_text(encoding="utf-8"))
    if manifest.proof["status"] == PROVEN:
        return f"python -m engine --bundle {config.out}"
    return "the same command on the machine with the GPU, where its plans are proven; here nothing serves them"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 built, 1 beyond the tolerances, 2 unusable input, 130 interrupted."""
    if tell_version(sys.argv[1:] if arguments is None else arguments):
        return 0
    received: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        received.append(signum)  # the exception is lost if the signal meets a finaliser of a library
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    try:
        config = tyro.cli(
            BuildConfig,
            args=arguments,
            prog="python -m export.build_engines",
            description="Exports a run to ONNX and writes a bundle of engines that agree with PyTorch.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        if config.dry_run:
            print(json.dumps(_dry_run(config), indent=2, default=str))
        else:
            build(config, stopped=lambda: bool(received))
            print(f"next: {_next(config)}")
    except FAILURES as error:
        return report_error(error, "no bundle was written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
