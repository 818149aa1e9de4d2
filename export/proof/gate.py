"""The parity gate: a build's stages, each held against the truth; the first one beyond its tolerances is named.

portable     the ONNX graphs as PyTorch was traced, by ONNX Runtime in FP32
rewritten    the exact rewrites that the engine is made from, by ONNX Runtime in FP32
reduced      those with FP16 or INT8 in the graph, by ONNX Runtime on the CPU
engine       what serves
proof        the last of these, on the answers that travel with the bundle
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.backends import CPU, Options, open_engine
from engine.bundle import Engine
from engine.errors import ParityError
from engine.proof.figures import Report, Stage, Tolerances
from engine.proof.truth import Truth
from export.engines.candidate import Option
from export.errors import RewriteError
from export.proof.judge import Trial, describe

Subject = tuple[Option, Engine]
"""What a stage runs: how it computes, and the files."""
_PORTABLE: Subject = Option("onnxruntime", CPU, "fp32"), Engine()


@dataclass
class Gate:
    """Measures stages, each kind of engine once."""

    folder: Path  # where the graphs lie
    truth: Truth  # what they are held against
    trial: Trial | str  # edits to be judged, or why there are none
    max_batch: int  # largest batch of the engines, images
    threads: int  # their compute threads
    tolerances: Callable[[str], Tolerances]  # those of a precision
    say: Callable[[str], None]  # takes the table of each stage that was measured
    proof: Truth | None = None  # what travels with the bundle, if that is not `truth`
    _measured: dict[tuple[object, ...], Stage] = field(default_factory=dict, init=False)

    def require_portable(self) -> None:
        """Lets the portable graphs pass.

        Raises:
            ParityError: they are beyond their tolerances.
        """
        self._measure("portable", _PORTABLE)

    def check(self, option: Option, engine: Engine, *, runs: bool = True) -> Report:
        """Measures all stages of an engine: the last one is the engine itself, if it `runs` on this machine.

        Raises:
            RewriteError: the rewrites are not exact.
            ParityError: names the first stage beyond its tolerances; those after it were not measured.
        """
        stages = {"portable": _PORTABLE}
        for name, (encoder, decoder) in engine.stages.items():
            precision = option.precision if name == "reduced" else "fp32"
            stages[name] = Option("onnxruntime", CPU, precision), Engine(encoder, decoder)
        if runs:
            stages["engine"] = option, engine
        if self.proof is not None:
            stages["proof"] = list(stages.values())[-1]
        measured: dict[str, Stage] = {}
        for name, subject in stages.items():
            try:
                measured[name] = self._measure(name, subject)
            except ParityError as error:
                if name != "rewritten":
                    raise
                raise RewriteError(f"{error}; a rewrite must be exact: a fault of export.graphs.forms") from None
        return Report(self.truth.what, len(self.truth.images), describe(self.trial), measured)

    def _measure(self, name: str, subject: Subject) -> Stage:
        """A stage within its tolerances, measured anew unless it was before."""
        option, engine = subject
        key = (name == "proof", option, engine.encoder, engine.decoder, engine.split)
        if key not in self._measured:
            options = Options(**option._asdict(), max_batch_size=self.max_batch, threads=self.threads)
            what = f"{engine.encoder} and {engine.decoder} by {option.backend} in {option.precision} on {option.device}"
            truth = self.proof if name == "proof" and self.proof else self.truth
            with closing(open_engine(self.folder, engine, options)) as opened:
                stage = truth.compare(opened, what, self.tolerances(option.precision), self.max_batch, name)
                if truth is self.truth and not isinstance(self.trial, str):
                    stage = replace(stage, judged=self.trial.judge(opened, self.max_batch))
            self.say(stage.table(name))
            self._measured[key] = stage
        self._measured[key].require(name, self.truth.what)
        return self._measured[key]
