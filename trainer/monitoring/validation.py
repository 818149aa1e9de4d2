"""How a run does on held-out images, once an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.evaluation import figures
from trainer.loss.vae_loss import Loss
from trainer.monitoring.watchdog import ACTIVE_VARIANCE
from trainer.train_state import Run

BATCH_IMAGES = 64


@dataclass(frozen=True)
class Validation:
    """What an epoch's validation came to.

    Attributes:
        psnr: mean over the images, each reconstructed from its mu, dB.
        loss: the training loss at mu, without the attribute term.
        kl: nats an image.
        active: latents whose mu varies over the images.
        picture: the first images above their reconstructions, (H, W, 3).
    """

    psnr: float
    loss: float
    kl: float
    active: int
    picture: NDArray[np.uint8]


@torch.no_grad()
def validate(run: Run, loss: Loss, images: NDArray[np.uint8]) -> Validation:
    """Measures a run's result on images, in one process.

    Args:
        run: the model that trains goes on in training mode.
        loss: of whole batches.
        images: packed, (N, S, S, 3).
    """
    model = run.result
    model.eval()
    errors, means, losses, shown = [], [], [], images[:0]
    for start in range(0, len(images), BATCH_IMAGES):
        batch = run.place.images(images[start : start + BATCH_IMAGES])
        with run.place.autocast():
            output = model(batch)
        terms = loss(batch, output)
        losses.append(torch.stack([terms.total, terms.kl]) * len(batch))
        means.append(output.mu.float())
        errors.append((output.images - batch).square().mean((1, 2, 3)))
        if start == 0:
            shown = (output.images[:8].permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    run.model.train()
    total, kl = (torch.stack(losses).sum(0) / len(images)).tolist()
    return Validation(
        psnr=float((-10 * torch.cat(errors).log10()).mean()),
        loss=total,
        kl=kl,
        active=int((torch.cat(means).var(0) > ACTIVE_VARIANCE).sum()),
        picture=figures.grid([images[:8], shown]),
    )
