"""The Gaussian that random faces are drawn from: the trainer fits it, the bundle gets a copy."""

from __future__ import annotations

from engine.bundle import PRIOR
from engine.errors import BundleError
from engine.latents import Gaussian
from export.errors import InputError
from export.run import Run, anew
from trainer.run_folder import belongs


def load_prior(run: Run) -> Gaussian:
    """The prior of a run's model.

    Raises:
        InputError: it has none, as runs of before the trainer fitted it, or the file is torn or of other weights.
    """
    path = run.path / PRIOR
    if not path.is_file():
        raise InputError(f"{run.path} has no {PRIOR}, which new faces are drawn from; {anew(run.path)}")
    try:
        prior = Gaussian.load(path)
    except BundleError as error:
        raise InputError(f"{error}; {anew(run.path)}") from error
    if prior.latent_dim != run.config.model.latent_dim or not belongs(path, run.model_sha256):
        raise InputError(f"{path} is of other weights than those of the run; {anew(run.path)}")
    return prior
