"""Opens a bundle's engines for use: those that weren't proven on this machine are proven before anybody uses them."""

import logging
import math
import time
from dataclasses import fields
from shlex import quote
from typing import Any

from engine.backends import Backend, open_backend
from engine.bundle import PROOF, PROVEN, UNKNOWN, Bundle
from engine.errors import BundleError, ParityError
from engine.proof.figures import TOLERANCES, Stage, Tolerances
from engine.proof.machine import machine_of
from engine.proof.truth import Truth

logger = logging.getLogger(__name__)


def open_proven(bundle: Bundle, threads: int | None = None, device: str | None = None) -> Backend:
    """Opens a verified bundle as `open_backend` does, and proves it, unless it was proven on this machine.

    Raises:
        BundleError: the bundle carries no proof, or one that doesn't fit its graphs.
        BackendError: as `engine.backends.open_backend`.
        ParityError: its engines are beyond their tolerances on this machine; names stage, figure and mend.
    """
    backend = open_backend(bundle, threads, device)
    try:
        if not _is_proven(bundle, threads, device):
            prove(bundle, backend)
    except BaseException:
        backend.close()
        raise
    return backend


def prove(bundle: Bundle, backend: Backend) -> Stage:
    """Holds a bundle's opened engines against the answers that it carries: takes a second or so.

    Raises:
        BundleError: as `load_truth`.
        ParityError: they are beyond their tolerances.
    """
    manifest, began = bundle.manifest, time.perf_counter()
    truth = load_truth(bundle)
    what = f"{manifest.engine.encoder} and {manifest.engine.decoder} by {manifest.backend} in {manifest.precision}"
    try:
        stage = truth.compare(backend, what, tolerances_of(bundle), manifest.max_batch_size)
        stage.require("engine", f"{truth.what} on this machine")
    except ParityError as error:
        raise ParityError(f"{bundle.path}: {error}; it is not used here; {mend_of(bundle)}") from None
    logger.info("%s: proven on this machine in %.1f s", bundle.path, time.perf_counter() - began)
    return stage


def mend_of(bundle: Bundle) -> str:
    """What to do about engines that are wrong on this machine."""
    command = f"python -m export.retarget {quote(str(bundle.path))} --backend auto --out BUNDLE2"
    return f"make engines for this machine with: {command}"


def load_truth(bundle: Bundle) -> Truth:
    """The answers that a bundle carries.

    Raises:
        BundleError: it has none, or they don't fit its graphs; says which, and the mend.
    """
    manifest = bundle.manifest
    mend = "build it again with: python -m export.build_engines --run RUN --out BUNDLE"
    if PROOF not in manifest.files:
        raise BundleError(f"{bundle.path} carries no proof ({PROOF}) to hold its engines against; {mend}")
    try:
        truth = Truth.load(bundle.path / PROOF, manifest.image_size, manifest.latent_dim)
    except BundleError as error:
        raise BundleError(f"{error}; {mend}") from None
    if truth.model_sha256 != manifest.run.get("model_sha256", truth.model_sha256):
        raise BundleError(
            f"{bundle.path / PROOF} doesn't fit the graphs: it is of a model with SHA-256 "
            f"{truth.model_sha256[:12]}..., the manifest says {str(manifest.run['model_sha256'])[:12]}...; {mend}"
        )
    return truth


def tolerances_of(bundle: Bundle) -> Tolerances:
    """The tolerances that a bundle was built with; those of its precision where it doesn't say.

    Raises:
        BundleError: they are none, or those of an unknown precision.
    """
    manifest = bundle.manifest
    given = manifest.proof.get("tolerances")
    if given is None and manifest.precision in TOLERANCES:
        return TOLERANCES[manifest.precision]
    names = [field.name for field in fields(Tolerances)]
    # A bound that is no finite number would let everything pass.
    if not isinstance(given, dict) or set(given) != set(names) or not all(map(_is_number, given.values())):
        raise BundleError(
            f"{bundle.path}: the manifest's proof.tolerances must have the numbers {', '.join(names)}, not {given!r}"
        )
    return Tolerances(**given)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_proven(bundle: Bundle, threads: int | None, device: str | None) -> bool:
    proof = bundle.manifest.proof
    if proof["status"] == UNKNOWN:
        logger.warning(
            "%s was built before bundles carried their proof: nobody has compared its engines with PyTorch on this "
            "machine; build it again to have that done",
            bundle.path,
        )
        return True
    here = machine_of(bundle.manifest, threads, device)
    if proof["status"] == PROVEN and proof.get("machine") == here:
        return True
    logger.info("%s: %s; it is proven now", bundle.path, _why(proof, here))
    return False


def _why(proof: dict[str, Any], here: dict[str, str]) -> str:
    built = proof.get("machine")
    if not isinstance(built, dict):
        return f"its engines are unproven ({proof.get('reason', 'the manifest does not say why')})"
    names = sorted(name for name in {*built, *here} if built.get(name) != here.get(name))
    return "its engines were proven elsewhere: " + ", ".join(
        f"{name} {built.get(name)}, here {here.get(name)}" for name in names
    )
