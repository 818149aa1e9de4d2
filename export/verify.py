"""Repeats the proof of a bundle: on another machine, after an update, before it goes into service.

Without the run, it is held against the answers of PyTorch that it carries, which needs no torch. With it, everything
is measured as at export: on the run's held-out images, and edits as the run's classifier sees them.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated

import tyro

from engine.backends import DEVICE_RULE, cores, is_device, open_backend
from engine.bundle import PROOF, Bundle
from engine.errors import ParityError
from engine.proof.figures import TOLERANCES, Report
from engine.proof.opening import load_truth, mend_of, tolerances_of
from engine.proof.truth import Truth
from export import command
from export.engines.candidate import Option
from export.errors import InputError
from export.proof.gate import Gate
from export.proof.judge import NO_RUN, Trial, describe
from trainer.extras import require


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What to verify, against what."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """Bundle folder."""
    run: Path | None = None
    """Run folder that it was built from; None: held against the answers that the bundle carries."""
    device: str | None = None
    """Where the engine computes: cpu, cuda, or one of several GPUs, such as cuda:1; None: as the bundle says."""
    threads: int | None = None
    """Compute threads; None: all cores."""
    json: Path | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        if self.device is not None and not is_device(self.device):
            raise InputError(f"--device {self.device}: {DEVICE_RULE}")
        command.require_between("threads", self.threads, 1, command.MOST_THREADS)
        for folder in (self.bundle, self.run):
            if self.json is not None and folder is not None and self.json.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"--json {self.json}: lies in {folder}, which is only read; choose another place")


def verify(config: VerifyConfig) -> Report:
    """Measures a bundle's engine, held to the tolerances that it was built with.

    Raises:
        InputError: a flag or the run cannot be used; likewise RunError.
        EngineError: the bundle is damaged or carries no proof, or its engines can't run here.
        ParityError: a stage is beyond its tolerances.
    """
    bundle, threads = Bundle.load(config.bundle), config.threads or cores()
    manifest = bundle.manifest
    open_backend(bundle, threads, config.device).close()  # what can't run here is refused before all is measured
    trial: Trial | str = NO_RUN
    proof: Truth | None = None
    if config.run is None:
        truth = load_truth(bundle)
    else:
        truth, trial = run_truth(bundle, config.run)
        proof = load_truth(bundle) if PROOF in manifest.files else None
    print(f"edits judged: {describe(trial)}")
    built = tolerances_of(bundle)
    gate = Gate(
        bundle.path,
        truth,
        trial=trial,
        proof=proof,
        max_batch=manifest.max_batch_size,
        threads=threads,
        tolerances=lambda precision: built if precision == manifest.precision else TOLERANCES[precision],
        say=print,
    )
    option = Option(manifest.backend, config.device or manifest.device, manifest.precision)
    try:
        report = gate.check(option, manifest.engine)
    except ParityError as error:
        raise ParityError(f"{error}; {mend_of(bundle)}") from None
    if config.json is not None:
        config.json.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    return report


def built_parity(bundle: Bundle) -> Report:
    """Parity as it was measured when the bundle was built.

    Raises:
        InputError: the manifest does not say.
    """
    try:
        return Report.from_json(bundle.manifest.parity)
    except ValueError as error:
        raise InputError(
            f"{bundle.path}: its manifest has no parity figures of this version; build it again"
        ) from error


def run_truth(bundle: Bundle, path: Path) -> tuple[Truth, Trial | str]:
    """PyTorch's answers on the held-out images of the run that a bundle was built from, and edits for its classifier.

    Raises:
        InputError: it was built from another one, or the run cannot be used; likewise RunError.
    """
    # Bundles can be verified by themselves where there is no torch.
    from export.proof.reference import Reference  # noqa: PLC0415
    from export.run import Run  # noqa: PLC0415

    run = Run.load(path)
    if bundle.manifest.run.get("model_sha256") != run.model_sha256:
        raise InputError(f"--run {path}: {bundle.path} was built from another model; build it again from this one")
    reference = Reference.of(run, calibrates=bundle.manifest.precision == "int8")
    return reference.truth, reference.trial


def work(config: VerifyConfig) -> None:
    """The command's work."""
    if config.run is not None:
        require("train")
    report = verify(config)
    print(f"{config.bundle} agrees with {report.truth} on {report.samples} images and as many random latents")
    print(f"next: python -m engine --bundle {quote(str(config.bundle))}")


main = partial(command.run, VerifyConfig, work, prog="python -m export.verify", doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
