"""Other engines from a bundle alone: from its portable graphs and the answers of PyTorch that it carries.

It needs neither torch nor the run, so that a bundle becomes one for the GPU, or for another CPU, where that is. What it
can make is what follows from the graphs of the bundle: every precision for every backend, in the exact forms that the
bundle has (`build_engines --all-forms` keeps them all). Int8 graphs that the bundle has are taken as they are; others
are calibrated on images that the model draws.
"""

from trainer.extras import require

if __name__ == "__main__":
    require("retarget")  # before what needs it is imported

import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import onnx
import tyro

from engine.backends import Options, open_graphs
from engine.bundle import DECODER, DIRECTIONS, ENCODER, PRIOR, PROOF, Bundle
from engine.errors import BundleError
from engine.proof.opening import load_truth
from export import command
from export.bundle.assembly import Assembly, outcome
from export.bundle.output import check_apart, check_place, publish, require_space, staging
from export.bundle.provenance import versions
from export.engines.candidate import Candidate
from export.engines.plans import Say
from export.engines.support import Support
from export.errors import InputError
from export.flags import EngineFlags
from export.graphs.int8 import Calibration


@dataclass(frozen=True, kw_only=True)
class RetargetConfig(EngineFlags):
    """What to make from a bundle.

    What is left at auto is decided by a contest of a few seconds on this machine.
    """

    bundle: Annotated[Path, tyro.conf.Positional]
    """Bundle folder to start from; it is only read."""


def retarget(config: RetargetConfig, say: Say = print, stopped: Callable[[], bool] = lambda: False) -> Path:
    """Makes a bundle with other engines, and gives its folder; arguments as of `export.build_engines.build`.

    Raises:
        InputError: a flag or the place for the new bundle cannot be used, or the bundle lacks the graphs for it.
        EngineError: the bundle is damaged or carries no proof, or a runtime is not installed or refuses the graphs.
        ParityError: the engines are beyond their tolerances. Nothing is written.
        KeyboardInterrupt: `stopped` said so. Nothing is written.
    """
    check_apart(config.out, config.bundle, "BUNDLE")
    check_place(config.out, config.force)
    bundle = Bundle.load(config.bundle)
    truth = load_truth(bundle)
    graphs = [name for name in bundle.manifest.files if name.endswith(".onnx")]
    _require_readable(bundle, graphs)
    support = Support.find(config.device)
    candidates = _possible(config.bundle, config.candidates(support), graphs)
    others = [name for name in (DIRECTIONS, PRIOR, PROOF) if name in bundle.manifest.files]
    require_space(config.out.parent, 3 * sum((bundle.path / name).stat().st_size for name in (*graphs, *others)))
    manifest = dataclasses.replace(
        bundle.manifest,
        max_batch_size=config.max_batch or bundle.manifest.max_batch_size,
        versions={**bundle.manifest.versions, **versions()},
    )
    with staging(config.out) as folder:
        for name in (*graphs, *others):
            shutil.copyfile(bundle.path / name, folder / name)
        assembly = Assembly(
            flags=config,
            folder=folder,
            manifest=manifest,
            support=support,
            truth=truth,
            kept=graphs,
            say=say,
            calibrate=lambda: _calibration(bundle, config.cores),
        )
        made = assembly.assemble(candidates)
        if stopped():
            raise KeyboardInterrupt
        publish(folder, config.out, force=config.force)
    outcome(made, config.out, say)
    return config.out


def _require_readable(bundle: Bundle, graphs: Sequence[str]) -> None:
    """Refuses by its name what is no graph, before a copy of it is refused under another one."""
    for name in graphs:
        try:
            onnx.checker.check_model(bundle.path / name)
        except onnx.checker.ValidationError as error:
            raise BundleError(f"{bundle.path / name} is no ONNX graph ({error}); build the bundle again") from error


def _calibration(bundle: Bundle, threads: int) -> Calibration:
    """What INT8 is calibrated on without the run: its portable graphs in FP32, asked about images of their own."""
    model = open_graphs(bundle.path / ENCODER, bundle.path / DECODER, Options(threads=threads))
    if not bundle.priors:
        raise InputError(f"{bundle.path} has no {PRIOR}, which images for INT8 are drawn from; build the bundle again")
    return Calibration.drawn(model, next(iter(bundle.priors.values())), bundle.directions)


def _possible(bundle: Path, candidates: Sequence[Candidate], graphs: Sequence[str]) -> list[Candidate]:
    """The candidates whose graphs follow from those that are there."""
    if found := [candidate for candidate in candidates if set(candidate.portable) <= set(graphs)]:
        return found
    names = " and ".join(name for name in candidates[0].portable if name not in graphs)
    raise InputError(
        f"{candidates[0]}: {bundle} has no {names}, and exact forms are traced from the run; "
        "make it from the run with: python -m export.build_engines --run RUN --out BUNDLE"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 made, 1 beyond the tolerances, 2 unusable input, 130 interrupted."""
    work = partial(retarget, stopped=command.interruptible())
    prog = "python -m export.retarget"
    return command.run(RetargetConfig, work, arguments, prog=prog, doc=__doc__, outcome="no bundle was written")


if __name__ == "__main__":
    sys.exit(main())
