"""Training, from top to bottom. All randomness is a function of (seed, step), so a resumed run goes on exactly."""

import contextlib
import dataclasses
import logging
import math
import signal
import time
from pathlib import Path

from trainer import run_folder
from trainer.artifacts import derived
from trainer.config import TrainConfig
from trainer.data import FaceData
from trainer.errors import InterruptedRunError, NonFiniteLossError
from trainer.hardware import threads
from trainer.hardware.compile import should_compile
from trainer.hardware.device import Placement
from trainer.hardware.distributed import Processes
from trainer.loss.vae_loss import VAELoss
from trainer.monitoring.metric_logger import MetricLogger
from trainer.monitoring.validation import validate
from trainer.monitoring.watchdog import Watchdog
from trainer.signals import Signals
from trainer.train_state import TrainState

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
    # Device and processes
    place = Placement.of(config.device, config.precision)
    place.tune(config.deterministic)
    with Processes.join(place) as processes, contextlib.ExitStack() as stack:
        # Data, network and optimisers
        state = TrainState(config, data, folder, place, processes)

        # Resume
        processes.on_main(lambda: _occupy(state, resume, stack))
        state.restore()
        stack.enter_context(threads.limited(threads.choose(config.threads, state.held("threads"))))

        if state.step < state.num_steps:
            # Loss
            loss = VAELoss(config, state.perceptual(), processes)
            state.begin_leg(compiled=compile_run(state, loss))
            processes.on_main(lambda: run_folder.save_config(folder, config, state.resolved(loss.perceptual)))

            # Loop
            _loop(state, loss)

        # Finish
        processes.on_main(lambda: _finish(state))


def _occupy(state: TrainState, resume: bool, stack: contextlib.ExitStack) -> None:
    run_folder.require_free(state.folder, resume)
    # The last good files stay until the new ones are whole.
    stack.enter_context(run_folder.occupied(state.folder, 2 * state.saved_bytes))


def compile_run(state: TrainState, loss: VAELoss) -> bool:
    """Compiles what gains by it: VGG19 and, on one GPU, the VAE, which on a CPU gains next to nothing; whether it did.

    Raises:
        ConfigError: as of `should_compile`.
    """
    config, device = state.config, state.place.device
    images, _ = loss.num_compared(config.batch_size)
    if not should_compile(config.compile, device, state.num_steps, images, state.held("compiled")):
        return False
    if loss.perceptual and images:
        loss.perceptual.compile(images)
    if device.type == "cuda" and state.processes.world_size == 1:
        state.compile()
    return True


def _loop(state: TrainState, loss: VAELoss) -> None:
    """Trains to the last step; logs, validates and saves on the way."""
    config, processes = state.config, state.processes
    whole_loss = VAELoss(config, loss.perceptual)
    val = state.data.images[state.data.rows("val")[:NUM_VALIDATED]]
    saved = time.monotonic()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals(patient=processes.world_size > 1))
        batches = stack.enter_context(contextlib.closing(state.loader.stream(state.step, state.num_steps)))
        metrics = watchdog = None
        if processes.is_main:
            metrics = stack.enter_context(MetricLogger(state.folder, state.step, state.num_steps, config.batch_size))
            watchdog = Watchdog(config, state.folder / run_folder.METRICS)
        for batch in batches:
            rates = state.learning_rates
            terms = state.train_step(loss, batch)
            if metrics:
                metrics.advance(state.step)
            late = time.monotonic() - saved > 60 * config.save_minutes
            signum, save = processes.max(signals.received, late or bool(signals.received) or state.epoch_done)
            if save or state.step % config.log_every == 0:
                values = terms.named(processes.sum)
                _refuse_non_finite(state, values)
                if metrics and watchdog:
                    metrics.losses(state.step, state.epoch, rates | {"gradient_norm": state.gradient_norm()}, values)
                    watchdog.losses(values)
            if state.epoch_done and metrics and watchdog:
                found = validate(state.model, state.place, whole_loss, val)
                metrics.validation(state.step, f"{state.epoch:.0f}/{config.epochs}", found)
                watchdog.validation(state.step, found.kl, found.active, state.progress >= config.kl_warmup)
            if save:
                state.save()
                saved = time.monotonic()
            if signum:
                raise _interrupted(state, signum)
    # A signal that came after the last step's look at them; from here on they act at once.
    (signum,) = processes.max(signals.received)
    if signum:
        raise _interrupted(state, signum)


def _interrupted(state: TrainState, signum: int) -> InterruptedRunError:
    return InterruptedRunError(
        signum,
        f"stopped by {signal.Signals(signum).name} after step {state.step} of {state.num_steps}; the checkpoint is "
        "written, go on with --resume",
    )


def _refuse_non_finite(state: TrainState, values: dict[str, float]) -> None:
    if not math.isfinite(values["total"]):
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise NonFiniteLossError(f"the loss is not a number at step {state.step} ({terms}); {state.remedy}")


def _finish(state: TrainState) -> None:
    """Writes what follows from the weights, as far as the folder lacks it or has another kind of directions."""
    config, resolved = run_folder.load_config(state.folder)
    kind = state.config.directions
    changes = derived.complete(state.folder, state.place, state.data, kind, directions_anew=kind != config.directions)
    if changes is None:
        logger.info("%s is complete: nothing left to train; --epochs N adds epochs", state.folder)
        return
    run_folder.save_config(state.folder, dataclasses.replace(config, directions=kind), resolved)
    logger.info("attribute directions: %s", changes)
