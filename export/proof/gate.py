"""The parity gate: a build's stages, each held against the truth; the first one beyond its tolerances is named.

portable     the ONNX graphs as PyTorch was traced, by ONNX Runtime in FP32
rewritten    the exact rewrites that the engine is made from, by ONNX Runtime in FP32
reduced      those with FP16 or INT8 in the graph, by ONNX Runtime on the CPU
engine       what serves
proof        the last of these, on the answers that travel with the bundle
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from engine.backends import CPU, Options, open_graphs
from engine.bundle import Engine
from engine.errors import ParityError
from engine.proof.figures import Report, Stage, Tolerances
from engine.proof.truth import Truth
from export.errors import RewriteError
from export.proof.judge import Trial, describe


class Gate:
    """Measures stages, each kind of engine once.

    Args:
        folder: Where the graphs lie.
        truth: What they are held against.
        trial: Edits to be judged, or why there are none.
        proof: What travels with the bundle, if that is not `truth`.
        max_batch: Largest batch of the engines, images.
        threads: Their compute threads.
        tolerances: Gives the tolerances of a precision.
        say: Takes the table of each stage that was measured.
    """

    def __init__(
        self,
        folder: Path,
        truth: Truth,
        *,
        trial: Trial | str,
        max_batch: int,
        threads: int,
        tolerances: Callable[[str], Tolerances],
        say: Callable[[str], None],
        proof: Truth | None = None,
    ) -> None:
        self._folder = folder
        self.truth = truth
        self._trial = trial
        self._proof = proof
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

    def check(self, backend: str, precision: str, engine: Engine, *, device: str = CPU, runs: bool = True) -> Report:
        """Measures all stages of an engine: the last one is the engine itself, if it `runs` on this machine.

        Raises:
            RewriteError: the rewrites are not exact.
            ParityError: names the first stage beyond its tolerances; those after it were not measured.
        """
        stages = {"portable": _on_cpu("fp32", Engine())}
        for name, (encoder, decoder) in engine.stages.items():
            stages[name] = _on_cpu(precision if name == "reduced" else "fp32", Engine(encoder, decoder))
        if runs:
            stages["engine"] = _Subject(backend, device, precision, engine)
        if self._proof is not None:
            stages["proof"] = list(stages.values())[-1]
        measured: dict[str, Stage] = {}
        for name, subject in stages.items():
            try:
                measured[name] = self._measure(name, subject)
                self._report(measured).require()
            except ParityError as error:
                if name != "rewritten":
                    raise
                raise RewriteError(f"{error}; a rewrite must be exact: a fault of export.graphs.forms") from None
        return self._report(measured)

    def _report(self, stages: dict[str, Stage]) -> Report:
        return Report(self.truth.what, len(self.truth.images), describe(self._trial), stages)

    def _measure(self, name: str, subject: _Subject) -> Stage:
        backend, device, precision, engine = subject
        key = (name == "proof", backend, device, precision, engine.encoder, engine.decoder, engine.split)
        if key not in self._measured:
            encoder, decoder = self._folder / engine.encoder, self._folder / engine.decoder
            options = Options(
                backend=backend,
                device=device,
                precision=precision,
                max_batch_size=self._max_batch,
                edit=self._folder / engine.edit if engine.edit else None,
                split=engine.split,
                threads=self._threads,
            )
            opened = open_graphs(encoder, decoder, options)
            what = f"{engine.encoder} and {engine.decoder} by {backend} in {precision} on {device}"
            truth = self._proof if name == "proof" and self._proof else self.truth
            try:
                stage = truth.compare(opened, what, self._tolerances(precision), self._max_batch)
                if truth is self.truth and not isinstance(self._trial, str):
                    stage = replace(stage, judged=self._trial.judge(opened, self._max_batch))
            except ParityError as error:
                raise ParityError(f"stage {name}: {error}") from None
            finally:
                opened.close()
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
