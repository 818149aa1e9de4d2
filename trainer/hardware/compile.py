"""Whether torch.compile pays in a run, and works on this machine."""

import logging
from typing import Literal

import torch

from trainer.errors import ConfigError

logger = logging.getLogger(__name__)

MIN_GPU_STEPS = 1_000
"""Steps from which on compiling pays on a GPU."""
MIN_CPU_IMAGES = 50_000
"""Images passed through VGG19 from which on compiling pays on a CPU."""


def should_compile(
    mode: Literal["auto", "on", "off"], device: torch.device, steps: int, feature_images: int, before: bool | None
) -> bool:
    """Decides; asks the machine only where compiling would pay.

    Args:
        mode: the configuration's.
        device: where the run trains.
        steps: steps of the whole run.
        feature_images: images of a step that pass through VGG19 here.
        before: whether a run that is resumed was compiled, as its rounding depends on it; None for a new run.

    Raises:
        ConfigError: `mode` is "on", and torch.compile does not work here.
    """
    pays = steps >= MIN_GPU_STEPS if device.type == "cuda" else steps * feature_images >= MIN_CPU_IMAGES
    if mode == "off" or (mode == "auto" and not (pays if before is None else before)):
        return False
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler, a missing header, a read-only cache: it raises many kinds
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        if mode == "on":
            raise ConfigError(
                f"--compile on: torch.compile does not work here ({reason}); mend that, or use --compile off"
            ) from error
        logger.info("training without torch.compile, which does not work here (%s)", reason)
        return False
    logger.info("compiling; the first step takes longer")
    return True
