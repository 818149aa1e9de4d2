"""The parity gate: a build's stages, each held against the truth; the first one beyond its tolerances is named.

portable     the ONNX graphs as PyTorch was traced, by ONNX Runtime in FP32
rewritten    the exact rewrites that the engine is made from, by ONNX Runtime in FP32
reduced      those with FP16 or INT8 in the graph, by ONNX Runtime on the CPU
engine       what serves
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.backends import CPU, open_graphs
from engine.bundle import Engine
from export.errors import ParityError
from export.parity import TOLERANCES, Report, Stage, Tolerances
from export.truth import Truth


@dataclass(frozen=True)
class Overrides:
    """Tolerances that replace those of the precisions, in every stage; None leaves one as it is."""

    latents: float | None = None
    levels: int | None = None
    psnr_db: float | None = None
    judged: float | None = None

    def of(self, precision: str) -> Tolerances:
        """The tolerances of a precision."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(TOLERANCES[precision], **given)


class Gate:
    """Measures stages, each kind of engine once.

    Args:
        folder: Where the graphs lie.
        truth: What they are held against.
        max_batch: Largest batch of the engines, images.
        threads: Their compute threads.
        tolerances: Gives the tolerances of a stage, by its name and its precision.
        say: Takes the table of each stage that was measured.
    """

    def __init__(
        self,
        folder: Path,
        truth: Truth,
        *,
        max_batch: int,
        threads: int,
        tolerances: Callable[[str, str], Tolerances],
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._truth = truth
        self._max_batch = max_batch
        self._threads = threads
        self._tolerances = tolerances
        self._say = say
        self._measured: dict[tuple[object, ...], Stage] = {}

    def require_portable(self) -> None:
        """Lets the portable graphs pass.

        Raises:
            ParityError: they are beyond their tolerances.
        """
        self._report({"portable": self._measure("portable", _on_cpu("fp32", Engine()))}).require()

    def check(
        self,
        backend: str,
        precision: str,
        engine: Engine,
        *,
        device: str = CPU,
        portable: bool = True,
        runs: bool = True,
    ) -> Report:
        """Measures all stages of an engine.

        Args:
            backend: Its runtime.
            precision: Its arithmetic.
            engine: Its files.
            device: Where it computes.
            portable: Whether the portable graphs are a stage.
            runs: Whether the engine itself is one; otherwise it was built for another machine.

        Raises:
            ParityError: names the first stage beyond its tolerances; those after it were not measured.
        """
        stages = {"portable": _on_cpu("fp32", Engine())} if portable else {}
        for name, (encoder, decoder) in engine.stages.items():
            stages[name] = _on_cpu(precision if name == "reduced" else "fp32", Engine(encoder, decoder))
        if runs:
            stages["engine"] = _Subject(backend, device, precision, engine)
        measured: dict[str, Stage] = {}
        for name, subject in stages.items():
            measured[name] = self._measure(name, subject)
            self._report(measured).require()
        return self._report(measured)

    def _report(self, stages: dict[str, Stage]) -> Report:
        return Report(self._truth.what, len(self._truth.images), self._truth.judge, stages)

    def _measure(self, name: str, subject: _Subject) -> Stage:
        backend, device, precision, engine = subject
        key = (backend, device, precision, engine.encoder, engine.decoder, engine.split)
        if key not in self._measured:
            opened = open_graphs(
                backend,
                precision,
                self._folder / engine.encoder,
                self._folder / engine.decoder,
                self._max_batch,
                edit=self._folder / engine.edit if engine.edit else None,
                device=device,
                split=engine.split,
                threads=self._threads,
            )
            what = f"{engine.encoder} and {engine.decoder} by {backend} in {precision} on {device}"
            try:
                stage = self._truth.compare(opened, what, self._tolerances(name, precision))
            except ParityError as error:
                raise ParityError(f"stage {name}: {error}") from None
            self._say(stage.table(name))
            self._measured[key] = stage
        return self._measured[key]


class _Subject(NamedTuple):
    """What a stage runs."""

    backend: str
    device: str
    precision: str
    engine: Engine


def _on_cpu(precision: str, engine: Engine) -> _Subject:
    return _Subject("onnxruntime", CPU, precision, engine)
