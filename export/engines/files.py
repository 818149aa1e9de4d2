"""The files of candidates: graphs with a lower precision inside, and plans. What they are made from is there.

Every file is written once, whatever the number of candidates that need it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.backends import BACKENDS
from engine.errors import BackendError
from export.engines.candidate import Candidate
from export.engines.plans import PlanBuilder, Say
from export.graphs.edit import write_edit_by_steps
from export.graphs.fp16 import write_half
from export.graphs.int8 import Calibration, write_int8


def write_reduced(
    candidates: Sequence[Candidate],
    folder: Path,
    calibrate: Callable[[], Calibration],
    say: Say,
) -> None:
    """Writes the graphs with FP16 or INT8 inside that candidates need, whose graphs in FP32 are in the folder.

    `calibrate` gives what INT8 is calibrated on, and is called once at most.

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
                    calibration = calibrate()
                    say(f"calibrated on {len(calibration.images)} other images")
                write_int8(folder / source, folder / target, calibration, symmetric=candidate.symmetric)
                if candidate.symmetric:  # on a GPU, what int8 leaves in float is FP16
                    write_half(folder / target, folder / target)
            else:
                write_half(folder / source, folder / target)


def write_plans(
    candidates: Sequence[Candidate], folder: Path, builder: PlanBuilder
) -> tuple[list[Candidate], dict[str, Any]]:
    """Builds the plans of encoders and decoders, for TensorRT and TensorRT for RTX; the candidates' graphs are there.

    Returns:
        The candidates whose files are all there, and the builder's settings by name of the plan.

    Raises:
        BackendError: no candidate is left; says why the first plan was refused.
    """
    settings: dict[str, Any] = {}
    refused: dict[str, BackendError] = {}
    for candidate in candidates:
        if BACKENDS[candidate.backend].plan is None:
            continue
        for graph, plan in zip(candidate.graphs, candidate.files, strict=True):
            if plan in settings or plan in refused:
                continue
            try:
                settings[plan] = builder.build(
                    folder / graph, folder / plan, backend=candidate.backend, device=candidate.device
                )
            except BackendError as error:
                refused[plan] = error
                builder.say(f"{plan} is out: {error}")
    left = [candidate for candidate in candidates if refused.keys().isdisjoint(candidate.files)]
    if not left:
        raise next(iter(refused.values()))
    return left, settings


def write_edit_plan(candidate: Candidate, folder: Path, builder: PlanBuilder) -> dict[str, Any]:
    """Builds the plan of encoder and decoder as one graph, where a candidate has one; gives settings as `write_plans`.

    It holds the weights a second time: files and memory of a GPU double.

    Raises:
        BackendError: it was refused.
    """
    if candidate.edit is None:
        return {}
    encoder, decoder = (folder / graph for graph in candidate.graphs)
    plan = folder / candidate.edit
    graph = plan.with_suffix(".onnx")  # goes with the graphs of other candidates
    write_edit_by_steps(encoder, decoder, graph)
    settings = builder.build(graph, plan, backend=candidate.backend, device=candidate.device)
    return {candidate.edit: {**settings, "graph": " + ".join(candidate.graphs)}}
