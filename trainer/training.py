"""The training loop. All randomness is a function of (seed, step), so a resumed run goes on exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import signal
import time
from pathlib import Path

from trainer import run_folder
from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.errors import InterruptedRunError, NonFiniteLossError, RunError
from trainer.hardware import threads
from trainer.hardware.compile import compile_run
from trainer.hardware.device import Placement, choose_gpu_algorithms, keep_freed_memory
from trainer.hardware.distributed import Fleet
from trainer.latents import derived
from trainer.loss.perceptual import PerceptualLoss
from trainer.loss.vae_loss import Loss
from trainer.monitoring.metric_logger import Journal
from trainer.monitoring.validation import validate
from trainer.monitoring.watchdog import Watch
from trainer.signals import Signals
from trainer.train_state import Run

logger = logging.getLogger(__name__)

NUM_VALIDATED = 512
"""Images that an epoch is validated on."""


def train(config: TrainConfig, data: FaceData, folder: Path, resume: bool = False) -> None:
    """Trains a VAE, then computes its attribute directions; alone, or as one of the processes that torchrun started.

    Leaves the run folder that `trainer.run_folder` describes, and TensorBoard events.

    Args:
        config: what to compute.
        data: the images, packed at the model's size.
        folder: the run folder; new, or with `resume` one of the same configuration and data.
        resume: go on from the checkpoint; a folder without one starts from nothing.

    Raises:
        RunError: the folder is in use or cannot be written, or its checkpoint does not fit.
        NonFiniteLossError: the loss is not a number.
        InterruptedRunError: SIGINT or SIGTERM came; the checkpoint holds all steps that were done.
    """
    place = Placement.of(config.device, config.precision)
    if place.device.type == "cpu":
        keep_freed_memory()
    else:
        choose_gpu_algorithms(config.deterministic)
    with Fleet.join(place) as fleet, contextlib.ExitStack() as stack:
        run = Run(config, data, folder, place, fleet)

        def occupy() -> None:
            if (folder / run_folder.CONFIG).exists() and not resume:
                raise RunError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out")
            # The last good files stay until the new ones are whole.
            stack.enter_context(run_folder.occupied(folder, 2 * run.saved_bytes))

        fleet.lead(occupy)
        run.restore()
        stack.enter_context(threads.limited(threads.choose(config.threads, run.threads)))
        if run.step < run.num_steps:
            perceptual = run.perceptual()
            run.begin_leg(compile_run(run, perceptual))
            fleet.lead(lambda: run_folder.save_config(folder, config, run.resolved(perceptual)))
            _fit(run, perceptual)
            fleet.lead(lambda: _finish(run))
        else:
            fleet.lead(lambda: _complete(run))


def _fit(run: Run, perceptual: PerceptualLoss | None) -> None:
    config, fleet = run.config, run.fleet
    loss, whole = Loss(config, perceptual, fleet.shard), Loss(config, perceptual)
    val = run.data.images[run.data.rows("val")[:NUM_VALIDATED]]
    saved = time.monotonic()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals(patient=fleet.size > 1))
        batches = stack.enter_context(contextlib.closing(run.feed.stream(run.step, run.num_steps)))
        journal = watch = None
        if fleet.leads:
            journal = stack.enter_context(Journal(run.folder, run.step, run.num_steps, config.batch_size))
            watch = Watch(config, run.folder / run_folder.METRICS)
        for batch in batches:
            rates = {"lr": run.lr} | ({} if run.muon_lr is None else {"muon_lr": run.muon_lr})
            terms = run.advance(loss, batch)
            if journal:
                journal.advance(run.step)
            late = time.monotonic() - saved > 60 * config.save_minutes
            signum, save = fleet.agree(signals.received, late or bool(signals.received) or run.epoch_done)
            if save or run.step % config.log_every == 0:
                values = terms.named(fleet.total)
                _refuse_non_finite(run, values)
                if journal and watch:
                    journal.losses(run.step, run.epoch, rates | {"gradient_norm": run.gradient_norm()}, values)
                    watch.losses(values)
            if run.epoch_done and journal and watch:
                found = validate(run, whole, val)
                journal.validation(run.step, f"{run.epoch:.0f}/{config.epochs}", found)
                watch.validation(run.step, found.kl, found.active, run.kl_warm)
            if save:
                run.save()
                saved = time.monotonic()
            if signum:
                raise _interrupted(run, signum)
    # A signal that came after the last step's look at them; from here on they act at once.
    (signum,) = fleet.agree(signals.received)
    if signum:
        raise _interrupted(run, signum)


def _interrupted(run: Run, signum: int) -> InterruptedRunError:
    return InterruptedRunError(
        signum,
        f"stopped by {signal.Signals(signum).name} after step {run.step} of {run.num_steps}; the checkpoint is "
        "written, go on with --resume",
    )


def _refuse_non_finite(run: Run, values: dict[str, float]) -> None:
    if not math.isfinite(values["total"]):
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise NonFiniteLossError(f"the loss is not a number at step {run.step} ({terms}); {run.remedy}")


def _finish(run: Run) -> None:
    """Writes what follows from the weights."""
    changes = derived.after_training(run.folder, run.result, run.place, run.data, run.config.directions)
    logger.info("attribute directions: %s", changes)


def _complete(run: Run) -> None:
    """Writes what a run whose training is done lacks, and its directions anew where another kind is asked for."""
    config, resolved = run_folder.load_config(run.folder)
    kind = run.config.directions
    other_kind = kind != config.directions
    changes = derived.complete(run.folder, run.result, run.place, run.data, kind=kind, other_kind=other_kind)
    if changes is None:
        logger.info("%s is complete: nothing left to train; --epochs N adds epochs", run.folder)
        return
    run_folder.save_config(run.folder, dataclasses.replace(config, directions=kind), resolved)
    logger.info("attribute directions: %s", changes)
