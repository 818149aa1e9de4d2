"""From FP32 graphs to a bundle: lower precisions, plans, the contest, the gate, and the manifest. It needs no torch.

`build_engines` comes here with the graphs of a run, `retarget` with those of another bundle.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from engine.backends import BACKENDS, kind_of, tensorrt
from engine.bundle import DECODER, ENCODER, MANIFEST, PROVEN, UNPROVEN, Bundle, Manifest, sha256_of
from engine.errors import BackendError, ParityError
from engine.proof.figures import Report
from engine.proof.machine import cpu_model, machine_of
from engine.proof.truth import Truth
from export.engines.candidate import Candidate
from export.engines.contest import RULE, Entry, rank, table
from export.engines.files import write_edit_plan, write_plans, write_reduced
from export.engines.plans import PlanBuilder, Say, layers_of
from export.engines.support import Support
from export.errors import RewriteError
from export.flags import EngineFlags
from export.graphs.int8 import Calibration
from export.proof.gate import Gate
from export.proof.judge import NO_RUN, Trial
from export.proof.layers import table as layers_table


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """A folder with the graphs of a model, on its way to be a bundle."""

    flags: EngineFlags
    folder: Path  # holds the candidates' graphs in FP32, and all of the bundle that doesn't depend on the engines
    manifest: Manifest  # what it is to say, but for backend, precision, engine, files, parity, tensorrt and proof
    support: Support  # what runs here
    truth: Truth  # what engines are held against
    proof: Truth | None = None  # the answers that travel with the bundle, if those are not `truth`
    trial: Trial | str = NO_RUN  # edits to be judged, or why there are none
    kept: Collection[str]  # names of graphs that stay though no engine is made from them
    say: Say  # takes each line about the progress, and the tables of contest and parity
    calibrate: Callable[[], Calibration]  # gives what INT8 is calibrated on

    def assemble(self, candidates: Sequence[Candidate]) -> Bundle:
        """Makes it a bundle with the best of the candidates that pass the gate.

        Raises:
            BackendError: no plan could be built.
            ParityError: the portable graphs or all candidates are beyond their tolerances; likewise `RewriteError`.
        """
        gate = Gate(
            self.folder,
            self.truth,
            trial=self.trial,
            proof=self.proof,
            max_batch=self.manifest.max_batch_size,
            threads=self.flags.cores,
            tolerances=self.flags.tolerances,
            say=self.say,
        )
        gate.require_portable()
        write_reduced(candidates, self.folder, self.calibrate, self.say)
        builder = self._plan_builder()
        candidates, plans = write_plans(candidates, self.folder, builder)
        runs = candidates[0].option in self.support.here  # what doesn't has no rival
        entries = self._contest(candidates) if len(candidates) > 1 else []

        def check(candidate: Candidate) -> Report:
            plans.update(write_edit_plan(candidate, self.folder, builder))
            return gate.check(candidate.option, candidate.engine, runs=runs)

        winner, report, rejected = self._first_exact([entry.candidate for entry in entries] or candidates, check)
        if self.flags.explain:
            self._explain(winner)
        self._drop_others(winner)
        manifest = self._complete(winner, report, _chosen(entries, rejected, self.flags.cores), plans, runs=runs)
        (self.folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return Bundle.load(self.folder)

    def _plan_builder(self) -> PlanBuilder:
        return PlanBuilder(
            max_batch=self.manifest.max_batch_size,
            timing_cache=self.flags.out.with_name(f"{self.flags.out.name}.timing.cache"),
            say=self.say,
            compute_capabilities=self.flags.compute_capability,
            compatibility=self.flags.hardware_compatibility,
            tactics=self.flags.tactics,
        )

    def _contest(self, candidates: Sequence[Candidate]) -> list[Entry]:
        flags, say = self.flags, self.say
        say(f"measuring {len(candidates)} candidates, {flags.cores} threads")
        entries = rank(candidates, self.folder, self.manifest, threads=flags.cores, say=say)
        say(table(entries))
        budget = flags.min_psnr is not None
        for reason in self.support.why_not(flags.backend, flags.device, flags.precision, budget=budget):
            say(f"not in the contest: {reason}")
        return entries

    def _first_exact(
        self, ranked: Sequence[Candidate], check: Callable[[Candidate], Report]
    ) -> tuple[Candidate, Report, dict[Candidate, ParityError | BackendError]]:
        """The first candidate that passes the gate, its figures, and why those before it did not."""
        rejected: dict[Candidate, ParityError | BackendError] = {}
        for candidate in ranked:
            try:
                return candidate, check(candidate), rejected
            except RewriteError:
                raise
            except (ParityError, BackendError) as error:
                self.say(f"{candidate}: {error}")
                explained = {each.precision for each, why in rejected.items() if isinstance(why, ParityError)}
                if isinstance(error, ParityError) and candidate.precision not in explained:
                    self._explain(candidate)
                rejected[candidate] = error
        raise next(iter(rejected.values()))

    def _explain(self, candidate: Candidate) -> None:
        """Says what a precision that stands in the graph costs single layers."""
        if candidate.graphs != candidate.portable:
            self.say(layers_table(self.folder, candidate, self.truth))

    def _drop_others(self, winner: Candidate) -> None:
        """Removes the graphs and plans of other candidates; the portable graphs stay."""
        files = [*winner.files, *([winner.edit] if winner.edit else [])]
        layers = [layers_of(Path(name)).name for name in files]
        used = {ENCODER, DECODER, *winner.portable, *winner.graphs, *files, *layers, *self.kept}
        for pattern in ("*.onnx", "*.plan", "*.layers.json"):
            for path in self.folder.glob(pattern):
                if path.name not in used:
                    path.unlink()

    def _complete(
        self, winner: Candidate, report: Report, chosen: dict[str, Any], plans: dict[str, Any], *, runs: bool
    ) -> Manifest:
        """The manifest, with what it says of the engines."""
        manifest = replace(
            self.manifest,
            backend=winner.backend,
            device=kind_of(winner.device),
            precision=winner.precision,
            engine=replace(winner.engine, chosen=chosen),
            files={path.name: sha256_of(path) for path in sorted(self.folder.iterdir())},
            parity=report.to_json(),
            tensorrt=self._tensorrt(winner, plans),
        )
        return replace(manifest, proof=self._proof(winner, manifest, runs))

    def _tensorrt(self, winner: Candidate, plans: dict[str, Any]) -> dict[str, Any]:
        """What the manifest says of plans: what they are bound to, and how they were built."""
        if BACKENDS[winner.backend].plan is None:
            return {}
        device: dict[str, Any]
        if winner.backend == "tensorrt-rtx":
            targets = list(self.flags.compute_capability or tensorrt.DEFAULT_TARGETS)
            version = str(tensorrt.load_tensorrt("tensorrt-rtx").__version__)
            device = {"tensorrt-rtx": version, "compute_capabilities": targets}
        else:
            compatibility = self.flags.hardware_compatibility
            device = {**tensorrt.require_device(winner.backend, winner.device), "hardware_compatibility": compatibility}
        return {"device": device, "builder": {name: plans[name] for name in (*winner.files, winner.edit) if name}}

    def _proof(self, winner: Candidate, manifest: Manifest, runs: bool) -> dict[str, Any]:
        """What the manifest says of the proof: where the engines ran, or why they didn't."""
        tolerances = asdict(self.flags.tolerances(winner.precision))
        if runs:
            machine = machine_of(manifest, self.flags.cores, winner.device)
            return {"tolerances": tolerances, "status": PROVEN, "machine": machine}
        reason = self.support.missing[winner.option].partition(";")[0]
        return {"tolerances": tolerances, "status": UNPROVEN, "reason": reason}


def outcome(bundle: Bundle, out: Path, say: Say) -> None:
    """Says what was built, what is to be known of it, and what comes next."""
    manifest = bundle.manifest
    engine = f"{manifest.backend} {manifest.precision}, {manifest.engine.encoder} and {manifest.engine.decoder}"
    say(f"bundle: {out} ({', '.join(sorted(manifest.files))}), {engine}")
    if manifest.proof["status"] == UNPROVEN:
        say(
            f"unproven: {manifest.proof['reason']}; the graphs agree with PyTorch, the plans are proven where they load"
        )
        say(f"next: copy it to the machine with the GPU; there, python -m engine --bundle {quote(str(out))}")
    else:
        say(f"next: python -m engine --bundle {quote(str(out))}")


def _chosen(entries: list[Entry], rejected: Mapping[Candidate, Exception], threads: int) -> dict[str, Any]:
    if not entries:
        return {}
    why = {candidate: str(error) for candidate, error in rejected.items()}
    return {
        "rule": RULE,
        "cpu": cpu_model(),
        "threads": threads,
        "candidates": [{**entry.to_json(), "rejected": why.get(entry.candidate)} for entry in entries],
    }
