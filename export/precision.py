"""The files of candidates: graphs with a lower precision inside, and plans. What they are made from is there.

Every file is written once, whatever the number of candidates that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.backends import OF_PLANS, Backend, Bytes
from engine.errors import BackendError
from engine.latents import Directions
from export.candidate import Candidate
from export.half import write_half
from export.quantize import Calibration, write_int8

Say = Callable[[str], None]


def split_samples(samples: Bytes, precision: str) -> tuple[Bytes, Bytes]:
    """A run's held-out images as those that parity is measured on and those that INT8 is calibrated on.

    A run holds no images of the train split. So with int8 they are halved, in turns; all other precisions are measured
    on all of them.

    Args:
        samples: uint8 [N, S, S, 3].
        precision: Of the engines.
    """
    if precision != "int8":
        return samples, samples[:0]
    return np.ascontiguousarray(samples[1::2]), np.ascontiguousarray(samples[::2])


def write_reduced(
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    model: Backend,
    calibration_images: Bytes,
    directions: Directions,
    say: Say,
) -> None:
    """Writes the graphs that have FP16 or INT8 inside.

    Args:
        candidates: Who needs them; their graphs in FP32 are there.
        folder: Where to write.
        model: The model in FP32, to calibrate with.
        calibration_images: uint8 [N, S, S, 3], for INT8.
        directions: Directions of the edits, for INT8.
        say: Takes the progress.

    Raises:
        InputError: a weight is too large for FP16.
        BackendError: nncf is needed and not installed.
    """
    calibration = None
    for candidate in candidates:
        for source, target in zip(candidate.portable, candidate.graphs, strict=True):
            if (folder / target).exists():
                continue
            say(f"writing {target}")
            if candidate.precision == "int8":
                if calibration is None:
                    say(f"calibrating on {len(calibration_images)} other images")
                    calibration = Calibration.of(model, calibration_images, directions)
                write_int8(folder / source, folder / target, calibration, symmetric=candidate.symmetric)
                if candidate.symmetric:  # on a GPU, what int8 leaves in float is FP16
                    write_half(folder / target, folder / target)
            else:
                write_half(folder / source, folder / target)


def write_plans(
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    max_batch: int,
    timing_cache: Path,
    compute_capabilities: Sequence[str],
    say: Say,
) -> tuple[list[Candidate], dict[str, Any]]:
    """Builds the plans of TensorRT and of TensorRT for RTX.

    Args:
        candidates: Who needs them; their graphs are there.
        folder: Where to write.
        max_batch: Largest batch, images.
        timing_cache: File of TensorRT's own measurements, read and written.
        compute_capabilities: GPUs that TensorRT for RTX builds for; none: its default.
        say: Takes the progress.

    Returns:
        The candidates whose files are all there, and the builder's settings by name of the plan.

    Raises:
        BackendError: no candidate is left; says why the first plan was refused.
    """
    settings: dict[str, Any] = {}
    refused: dict[str, BackendError] = {}
    for candidate in candidates:
        if candidate.backend not in OF_PLANS:
            continue
        from export.tensorrt_build import build_plan  # noqa: PLC0415

        for graph, plan in zip(candidate.graphs, candidate.files, strict=True):
            if plan in settings or plan in refused:
                continue
            try:
                settings[plan] = build_plan(
                    folder / graph,
                    folder / plan,
                    max_batch=max_batch,
                    timing_cache=timing_cache,
                    say=say,
                    backend=candidate.backend,
                    compute_capabilities=compute_capabilities if candidate.backend == "tensorrt-rtx" else (),
                )
            except BackendError as error:
                refused[plan] = error
                say(f"{plan} is out: {error}")
    left = [candidate for candidate in candidates if refused.keys().isdisjoint(candidate.files)]
    if not left:
        raise next(iter(refused.values()))
    return left, settings
