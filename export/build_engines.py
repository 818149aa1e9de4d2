"""Builds a bundle from a run: ONNX graphs, engines, the parity gate, the manifest.

Nothing appears at --out before everything has been built, measured and verified.
"""

from __future__ import annotations

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

from engine.backends import open_backend, warm_up
from engine.bundle import (
    DECODER,
    DIRECTIONS,
    ENCODER,
    FORMAT_VERSION,
    MANIFEST,
    Bundle,
    Manifest,
    Preprocessing,
    sha256_of,
)
from engine.errors import EngineError
from export.errors import InputError, ParityError
from export.graphs import write_graphs
from export.parity import Tolerances, compare
from export.place import check_place, publish, staging
from export.reference import EagerBackend
from export.run import Run
from export.versions import versions
from trainer.errors import RunError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What to build, from what, and how exact it must be."""

    run: Path
    """Run folder of a finished training."""
    out: Path
    """Bundle folder to write; must not exist yet, unless with --force."""
    backend: Literal["auto", "onnxruntime"] = "auto"
    """Runtime that will serve the bundle; auto: ONNX Runtime."""
    precision: Literal["fp32"] = "fp32"
    """Arithmetic of the engines."""
    max_batch: int = 32
    """Largest batch that the engines take, images."""
    threads: int | None = None
    """Compute threads of the engines while parity is measured; None: all cores."""
    latent_tolerance: float = Tolerances.latents
    """Largest error of mu and log_var against PyTorch FP32, as a share of their spread over the samples."""
    level_tolerance: int = Tolerances.levels
    """Largest difference of any pixel against PyTorch FP32, 8-bit levels."""
    force: bool = False
    """Replace the bundle that is at --out; only ever a bundle."""
    dry_run: bool = False
    """Check everything, print the resolved configuration and stop."""

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("max-batch", self.max_batch, 1),
            ("latent-tolerance", self.latent_tolerance, 0),
            ("level-tolerance", self.level_tolerance, 0),
            ("threads", 1 if self.threads is None else self.threads, 1),
        ):
            if not value >= least:
                raise InputError(f"--{flag} {value}: must be at least {least}")

    def resolve(self) -> BuildConfig:
        """The same configuration with nothing left to choose."""
        return dataclasses.replace(
            self,
            backend="onnxruntime",
            threads=self.threads or len(os.sched_getaffinity(0)),
        )


def build(config: BuildConfig, say: Say = print, stopped: Callable[[], bool] = lambda: False) -> Path:
    """Builds a bundle.

    Args:
        config: What to build.
        say: Takes each line about the progress, and the parity table.
        stopped: Asked once more before the bundle gets its name; True gives up.

    Returns:
        The bundle folder.

    Raises:
        InputError: a flag, the run folder or the place for the bundle cannot be used.
        RunError: there is no run at `config.run`, or its configuration or weights cannot be read.
        EngineError: the runtime is not installed, or refuses the graphs.
        ParityError: the engines differ from PyTorch by more than the tolerances. Nothing is written.
        KeyboardInterrupt: `stopped` said so. Nothing is written.
    """
    config = config.resolve()
    check_place(config.out, config.force)
    run = Run.load(config.run)
    with staging(config.out) as folder:
        say(f"writing ONNX graphs of {config.run} ({run.config.model.image_size} pixels)")
        write_graphs(run.model, folder, run.model_sha256)
        shutil.copyfile(config.run / DIRECTIONS, folder / DIRECTIONS)
        bundle = Bundle(folder, _manifest(config, run, folder), run.directions)

        say(f"opening {config.backend} engines, {config.precision}, {config.threads} threads")
        engine = open_backend(bundle, config.threads)
        warm_up(engine, bundle.manifest)

        say(f"measuring parity on {len(run.samples)} images")
        report = compare(
            engine,
            EagerBackend(run.model),
            run.samples,
            run.directions,
            batch_size=config.max_batch,
            tolerances=Tolerances(config.latent_tolerance, config.level_tolerance),
        )
        say(report.table())
        report.require()

        manifest = dataclasses.replace(bundle.manifest, parity=report.to_json())
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        Bundle.load(folder)
        if stopped():
            raise KeyboardInterrupt
        publish(folder, config.out)
    say(f"bundle: {config.out} ({', '.join(sorted(manifest.files))})")
    return config.out


def _manifest(config: BuildConfig, run: Run, folder: Path) -> Manifest:
    """Describes the files of `folder`; the parity figures are still to come."""
    return Manifest(
        format_version=FORMAT_VERSION,
        image_size=run.config.model.image_size,
        latent_dim=run.config.model.latent_dim,
        preprocessing=Preprocessing(crop=run.config.crop or None),
        attributes=run.directions.names,
        backend=config.backend,
        precision=config.precision,
        max_batch_size=config.max_batch,
        files={name: sha256_of(folder / name) for name in (ENCODER, DECODER, DIRECTIONS)},
        parity={},
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
    )


def _dry_run(config: BuildConfig) -> dict[str, Any]:
    """Checks what `build` checks first; returns the resolved configuration and what it would build from."""
    config = config.resolve()
    check_place(config.out, config.force)
    run = Run.load(config.run)
    return {
        "config": dataclasses.asdict(config),
        "model": {**dataclasses.asdict(run.config.model), "sha256": run.model_sha256},
        "attributes": run.directions.names,
        "samples": len(run.samples),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 built, 1 beyond the tolerances, 2 unusable input, 130 interrupted."""
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
    except ParityError as error:
        return _fail(f"{error}; no bundle was written", 1)
    except (InputError, RunError, EngineError, OSError) as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; no bundle was written", 130)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
