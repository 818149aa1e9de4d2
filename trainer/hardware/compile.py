"""Whether torch.compile is worth its time in a run, and works on this machine."""

from __future__ import annotations

import logging
import math

import torch

from trainer.errors import ConfigError
from trainer.loss.perceptual import PerceptualLoss
from trainer.train_state import Run

logger = logging.getLogger(__name__)

MIN_GPU_STEPS = 1_000
"""Steps from which on compiling pays on a GPU."""
MIN_CPU_IMAGES = 50_000
"""Images passed through VGG from which on compiling pays on a CPU: it takes 40 to 60 s of a core and
saves 2 to 3 ms each."""


def compile_run(run: Run, perceptual: PerceptualLoss | None) -> bool:
    """Compiles what the configuration asks for.

    On a GPU these are the VAE, unless several processes share its batch norms, and VGG. On a CPU it is VGG alone, whose
    activations are many and large: compiled, its step takes a quarter less time; the VAE's gains next to nothing.

    A run that is gone on with is compiled if it was so far, as its rounding depends on it.

    Returns:
        Whether anything is compiled.

    Raises:
        ConfigError: `compile` is "on", and torch.compile does not work here.
    """
    mode, gpu = run.config.compile, run.place.device.type == "cuda"
    batch = run.config.batch_size
    judged = run.fleet.shard.count(math.ceil(run.config.feature_share * batch)) if perceptual else 0
    steps = run.num_steps
    pays = steps >= MIN_GPU_STEPS if gpu else steps * judged >= MIN_CPU_IMAGES
    if run.compiled is not None:
        pays = run.compiled
    if mode == "off" or (mode == "auto" and not pays):
        return False
    reason = _obstacle(run.place.device)
    if reason and mode == "on":
        raise ConfigError(f"--compile on: torch.compile does not work here ({reason}); mend that, or use --compile off")
    if reason:
        logger.info("training without torch.compile, which does not work here (%s)", reason)
        return False
    logger.info("compiling; the first step takes longer")
    if perceptual and judged:
        perceptual.compile(judged)
    if gpu and run.fleet.size == 1:
        run.compile()
    return True


def _obstacle(device: torch.device) -> str | None:
    """Why torch.compile does not work on a device, in one line; None if it does."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler, a missing header, a read-only cache: it raises many kinds
        return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    return None
