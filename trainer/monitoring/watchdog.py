"""What is wrong with a training run that goes on all the same: it warns, once each, and says what to change."""

import json
import logging
from pathlib import Path

from trainer.config import TrainConfig

logger = logging.getLogger(__name__)

ACTIVE_VARIANCE = 0.01
"""A latent is active if the variance of its mu over images exceeds this (Burda et al., arXiv 1509.00519, section 5)."""
MIN_KL = 1.0
"""Nats an image below which the posterior has collapsed."""
MIN_ACTIVE = 2
"""Active latents below which it has."""
NUM_FIRST, NUM_LAST = 3, 10
"""Logged steps that the loss is averaged over, at the start of the run and now."""
MIN_STEPS = 100
"""Steps that a run is given: at first the latents hardly vary, however it will go."""
MAX_REMAINING = 0.9
"""Fraction of the first loss that remains by then in a run that learns."""


class Watchdog:
    """Looks at the losses and validations of one run, from what its metrics.jsonl has so far."""

    def __init__(self, config: TrainConfig, metrics: Path) -> None:
        self._config = config
        records = (json.loads(line) for line in metrics.read_text().splitlines())
        self._reconstruction = [self._of(record["loss"]) for record in records if "loss" in record]
        self._collapsed = self._stuck = False

    def _of(self, values: dict[str, float]) -> float:
        """The terms that training must bring down; the KL rises before it falls."""
        features = sum(value for name, value in values.items() if name.startswith("feature/"))
        return self._config.pixel_weight * values["pixel"] + self._config.feature_weight * features

    def losses(self, values: dict[str, float]) -> None:
        """One more step was logged."""
        self._reconstruction.append(self._of(values))

    def validation(self, step: int, kl: float, active: int, warmed: bool) -> None:
        """One more epoch was validated: nats an image, active latents, whether the KL term has its full weight."""
        if step < MIN_STEPS:
            return
        config, size = self._config, self._config.model.latent_dim
        if warmed and not self._collapsed and (kl < MIN_KL or active < MIN_ACTIVE):
            self._collapsed = True
            logger.warning(
                "posterior collapse at step %d: the KL is %.2g nats and %d of %d latents are active, so that latents "
                "say nothing about their images; train into a new folder with a lower --kl-weight (now %.4g), a longer "
                "--kl-warmup or a lower --lr",
                *(step, kl, active, size, config.kl_weight),
            )
        if self._stuck or config.init_from is not None:
            return
        first = self._reconstruction[:NUM_FIRST]
        last = self._reconstruction[NUM_FIRST:][-NUM_LAST:]
        if not last:
            return
        before, now = sum(first) / len(first), sum(last) / len(last)
        if now > MAX_REMAINING * before:
            self._stuck = True
            logger.warning(
                "the loss does not fall: at step %d its reconstruction terms are %.4g, and in the first steps they "
                "were %.4g; stop, and train into a new folder with another --lr (now %.4g)",
                *(step, now, before, config.lr),
            )
