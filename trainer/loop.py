"""The training loop. All randomness is a function of (seed, step), so a resumed run goes on exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer import checkpoint, derived, figures
from trainer.compiler import compile_run
from trainer.config import TrainConfig
from trainer.dataset import FaceData
from trainer.errors import InterruptedRunError, NonFiniteLossError, RunError
from trainer.fleet import Fleet
from trainer.journal import Journal
from trainer.loss import Loss
from trainer.placement import Placement, keep_freed_memory
from trainer.run import Run
from trainer.signals import Signals

logger = logging.getLogger(__name__)

NUM_VALIDATED = 512
"""Images that an epoch is validated on."""


def train(config: TrainConfig, data: FaceData, folder: Path, resume: bool = False) -> None:
    """Trains a VAE, then computes its attribute directions; alone, or as one of the processes that torchrun started.

    Leaves the run folder that `trainer.checkpoint` describes, and TensorBoard events.

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
    torch.backends.cudnn.benchmark = True  # the shapes are the same in every step
    with Fleet.join(place) as fleet, contextlib.ExitStack() as stack:
        run = Run(config, data, folder, place, fleet)

        def occupy() -> None:
            if (folder / checkpoint.CONFIG).exists() and not resume:
                raise RunError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out")
            # The last good files stay until the new ones are whole.
            stack.enter_context(checkpoint.occupied(folder, 2 * run.saved_bytes))

        fleet.lead(occupy)
        run.restore()
        if run.step < run.num_steps:
            perceptual = run.perceptual()
            fleet.lead(lambda: checkpoint.save_config(folder, config, run.resolved(perceptual)))
            compile_run(run, perceptual)
            _fit(run, Loss(config, perceptual, fleet.shard))
            fleet.lead(lambda: _finish(run))
        else:
            fleet.lead(lambda: _complete(run))


def _fit(run: Run, loss: Loss) -> None:
    config, fleet = run.config, run.fleet
    val = run.data.images[run.data.rows("val")[:NUM_VALIDATED]]
    saved = time.monotonic()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals(patient=fleet.size > 1))
        batches = stack.enter_context(contextlib.closing(run.feed.stream(run.step, run.num_steps)))
        journal = None
        if fleet.leads:
            journal = stack.enter_context(Journal(run.folder, run.step, run.num_steps, config.batch_size))
        for batch in batches:
            lr = run.lr
            terms = run.advance(loss, batch)
            if journal:
                journal.advance(run.step)
            late = time.monotonic() - saved > 60 * config.save_minutes
            signum, save = fleet.agree(signals.received, late or bool(signals.received) or run.epoch_done)
            if save or run.step % config.log_every == 0:
                values = terms.named(fleet.total)
                _refuse_non_finite(run, values)
                if journal:
                    journal.losses(run.step, run.epoch, lr, values)
            if run.epoch_done and journal:
                psnr, picture = _validate(run, val)
                journal.validation(run.step, f"{run.epoch:.0f}/{config.epochs}", psnr, picture)
            if save:
                run.save()
                saved = time.monotonic()
            if signum:
                raise InterruptedRunError(
                    signum,
                    f"stopped by {signal.Signals(signum).name} after step {run.step} of {run.num_steps}; the "
                    "checkpoint is written, go on with --resume",
                )


def _refuse_non_finite(run: Run, values: dict[str, float]) -> None:
    if not math.isfinite(values["total"]):
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise NonFiniteLossError(
            f"the loss is not a number at step {run.step} ({terms}); {run.remedy}; the last good checkpoint is kept"
        )


@torch.no_grad()
def _validate(run: Run, images: NDArray[np.uint8]) -> tuple[float, NDArray[np.uint8]]:
    """Mean PSNR of reconstructions from mu, dB, and a picture of the first of them."""
    model = run.result
    model.eval()
    errors, shown = [], images[:0]
    for start in range(0, len(images), 64):
        batch = run.place.images(images[start : start + 64])
        with run.place.autocast():
            output = model(batch)
        errors.append((output.images - batch).square().mean((1, 2, 3)))
        if start == 0:
            shown = (output.images[:8].permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    run.model.train()
    return float((-10 * torch.cat(errors).log10()).mean()), figures.grid([images[:8], shown])


def _finish(run: Run) -> None:
    """Writes what follows from the weights."""
    changes = derived.after_training(run.folder, run.result, run.place, run.data, run.config.directions)
    logger.info("attribute directions: %s", changes)


def _complete(run: Run) -> None:
    """Writes what a run whose training is done lacks, and its directions anew where another kind is asked for."""
    config, resolved = checkpoint.load_config(run.folder)
    kind = run.config.directions
    other_kind = kind != config.directions
    changes = derived.complete(run.folder, run.result, run.place, run.data, kind=kind, other_kind=other_kind)
    if changes is None:
        logger.info("%s is complete: nothing left to train", run.folder)
        return
    checkpoint.save_config(run.folder, dataclasses.replace(config, directions=kind), resolved)
    logger.info("attribute directions: %s", changes)
