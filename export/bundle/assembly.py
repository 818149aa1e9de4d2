"""From FP32 graphs to a bundle: lower precisions, plans, the contest, the gate, and the manifest. It needs no torch.

`build_engines` comes here with the graphs of a run, `retarget` with those of another bundle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from engine.backends import BACKENDS, kind_of, open_backend, tensorrt, warm_up
from engine.bundle import DECODER, ENCODER, MANIFEST, PROVEN, UNPROVEN, Bundle, Manifest, sha256_of
from engine.errors import BackendError, ParityError
from engine.proof.figures import Report
from engine.proof.machine import cpu_model, machine_of
from engine.proof.truth import Truth
from export.engines.candidate import Candidate
from export.engines.contest import RULE, Entry, rank, table
from export.engines.files import write_edit_plan, write_plans, write_reduced
from export.engines.plans import Say, layers_of
from export.engines.support import Support
from export.errors import RewriteError
from export.flags import EngineFlags
from export.graphs.int8 import Calibration
from export.proof.gate import Gate
from export.proof.judge import Trial
from export.proof.layers import table as layers_table


def assemble(
    flags: EngineFlags,
    folder: Path,  # holds the candidates' graphs in FP32, and all of the bundle that doesn't depend on the engines
    manifest: Manifest,  # what it is to say, but for backend, precision, engine, files, parity, tensorrt and proof
    *,
    candidates: list[Candidate],  # what to choose from
    support: Support,  # what runs here
    truth: Truth,  # what they are held against
    proof: Truth,  # the answers that travel with the bundle
    trial: Trial | str,  # edits to be judged, or why there are none
    kept: Collection[str],  # names of graphs that stay though no engine is made from them
    say: Say,  # takes each line about the progress, and the tables of contest and parity
    calibrate: Callable[[], Calibration],  # gives what INT8 is calibrated on
) -> Bundle:
    """Makes a folder with the graphs of a model a bundle, with the best of the candidates that pass the gate.

    Raises:
        BackendError: no plan could be built.
        ParityError: the portable graphs or all candidates are beyond their tolerances; likewise `RewriteError`.
    """
    gate = Gate(
        folder,
        truth,
        trial=trial,
        proof=None if proof is truth else proof,
        max_batch=manifest.max_batch_size,
        threads=flags.cores,
        tolerances=flags.tolerances,
        say=say,
    )
    gate.require_portable()
    write_reduced(candidates, folder, calibrate, say)
    building: dict[str, Any] = {
        "max_batch": manifest.max_batch_size,
        "timing_cache": flags.out.with_name(f"{flags.out.name}.timing.cache"),
        "compute_capabilities": flags.compute_capability,
        "compatibility": flags.hardware_compatibility,
        "tactics": flags.tactics,
        "say": say,
    }
    candidates, plans = write_plans(candidates, folder, **building)
    runs = candidates[0].option in support.here  # what doesn't has no rival
    entries = _contest(flags, candidates, folder, manifest, support=support, say=say) if len(candidates) > 1 else []

    explained: set[str] = set()

    def explain(candidate: Candidate) -> None:
        if candidate.graphs != candidate.portable and candidate.precision not in explained:
            explained.add(candidate.precision)
            say(layers_table(folder, candidate, truth))

    def check(candidate: Candidate) -> Report:
        plans.update(write_edit_plan(candidate, folder, **building))
        return gate.check(candidate.backend, candidate.precision, candidate.engine, device=candidate.device, runs=runs)

    winner, report, rejected = _first_exact([entry.candidate for entry in entries] or candidates, check, explain, say)
    if flags.explain:
        explain(winner)
    _drop_others(folder, winner, kept)

    manifest = dataclasses.replace(
        manifest,
        backend=winner.backend,
        device=kind_of(winner.device),
        precision=winner.precision,
        engine=dataclasses.replace(winner.engine, chosen=_chosen(entries, rejected, flags.cores)),
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        parity=report.to_json(),
        tensorrt=_tensorrt(flags, winner, plans),
    )
    manifest = dataclasses.replace(manifest, proof=_proof(flags, winner, manifest, runs))
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    bundle = Bundle.load(folder)
    if runs:
        backend = open_backend(bundle, flags.cores, winner.device)
        try:
            warm_up(backend, manifest)
        finally:
            backend.close()
    return bundle


def _contest(
    flags: EngineFlags, candidates: list[Candidate], folder: Path, manifest: Manifest, *, support: Support, say: Say
) -> list[Entry]:
    say(f"measuring {len(candidates)} candidates, {flags.cores} threads")
    entries = rank(candidates, folder, manifest, threads=flags.cores, say=say)
    say(table(entries))
    budget = flags.min_psnr is not None
    for reason in support.why_not(flags.backend, flags.device, flags.precision, budget=budget) if entries else ():
        say(f"not in the contest: {reason}")
    return entries


def _first_exact(
    ranked: Sequence[Candidate],
    check: Callable[[Candidate], Report],
    explain: Callable[[Candidate], None],
    say: Say,
) -> tuple[Candidate, Report, dict[Candidate, ParityError | BackendError]]:
    """The first candidate that passes the gate, its figures, and why those before it did not."""
    rejected: dict[Candidate, ParityError | BackendError] = {}
    for candidate in ranked:
        try:
            return candidate, check(candidate), rejected
        except RewriteError:
            raise
        except (ParityError, BackendError) as error:
            rejected[candidate] = error
            say(f"{candidate}: {error}")
            if isinstance(error, ParityError):
                explain(candidate)
    raise next(iter(rejected.values()))


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


def _drop_others(folder: Path, winner: Candidate, kept: Collection[str]) -> None:
    """Removes the graphs and plans of other candidates; the portable graphs stay."""
    files = [*winner.files, *([winner.edit] if winner.edit else [])]
    layers = [layers_of(Path(name)).name for name in files]
    used = {ENCODER, DECODER, *winner.portable, *winner.graphs, *files, *layers, *kept}
    for path in (*folder.glob("*.onnx"), *folder.glob("*.plan"), *folder.glob("*.layers.json")):
        if path.name not in used:
            path.unlink()


def _tensorrt(flags: EngineFlags, winner: Candidate, plans: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of plans: what they are bound to, and how they were built."""
    if BACKENDS[winner.backend].plan is None:
        return {}
    device: dict[str, Any]
    if winner.backend == "tensorrt-rtx":
        targets = list(flags.compute_capability or tensorrt.DEFAULT_TARGETS)
        device = {
            "tensorrt-rtx": str(tensorrt.load_tensorrt("tensorrt-rtx").__version__),
            "compute_capabilities": targets,
        }
    else:
        compatibility = flags.hardware_compatibility
        device = {**tensorrt.require_device(winner.backend, winner.device), "hardware_compatibility": compatibility}
    return {"device": device, "builder": {name: plans[name] for name in (*winner.files, winner.edit) if name}}


def _proof(flags: EngineFlags, winner: Candidate, manifest: Manifest, runs: bool) -> dict[str, Any]:
    """What the manifest says of the proof: where the engines ran, or why they didn't."""
    tolerances = asdict(flags.tolerances(winner.precision))
    if runs:
        machine = machine_of(manifest, flags.cores, winner.device)
        return {"tolerances": tolerances, "status": PROVEN, "machine": machine}
    reason = "no engine was run"
    try:
        tensorrt.require_device(winner.backend, winner.device)
    except BackendError as error:
        reason = str(error).partition(";")[0]
    return {"tolerances": tolerances, "status": UNPROVEN, "reason": reason}
