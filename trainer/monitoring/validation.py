"""How a run does on held-out images, once an epoch."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.hardware.device import Placement
from trainer.loss.vae_loss import VAELoss
from trainer.model import VAE
from trainer.monitoring.watchdog import ACTIVE_VARIANCE

BATCH_IMAGES = 64
NUM_SHOWN = 8
"""Images that are shown with their reconstructions."""
MAX_PSNR = 99.0
"""What images count with that are the same to the last bit, as white ones may be, dB."""


@dataclass(frozen=True)
class Validation:
    """What an epoch's validation came to."""

    psnr: float  # mean over the images, each reconstructed from its mu, dB; of one `MAX_PSNR` at most
    loss: float  # the training loss at mu, without the attribute term
    kl: float  # nats an image
    active: int  # latents whose mu varies over the images
    picture: NDArray[np.uint8]  # the first images above their reconstructions, (H, W, 3)


@torch.no_grad()
def validate(model: VAE, place: Placement, loss: VAELoss, images: NDArray[np.uint8]) -> Validation:
    """Measures a model on packed images (N, S, S, 3), in one process, by the loss of whole batches.

    The model goes on in training mode.
    """
    model.eval()
    errors, means, losses = [], [], []
    for start in range(0, len(images), BATCH_IMAGES):
        batch = place.images(images[start : start + BATCH_IMAGES])
        with place.autocast():
            output = model(batch)
        terms = loss(batch, output)
        losses.append(torch.stack([terms.total, terms.kl]) * len(batch))
        means.append(output.mu.float())
        errors.append((output.images - batch).square().mean((1, 2, 3)))
        if start == 0:
            shown = torch.stack([batch[:NUM_SHOWN], output.images[:NUM_SHOWN].float()])  # (2, N, 3, S, S)
    model.train()
    picture = shown.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    total, kl = (torch.stack(losses).sum(0) / len(images)).tolist()
    return Validation(
        psnr=float((-10 * torch.cat(errors).log10()).clamp(max=MAX_PSNR).mean()),
        loss=total,
        kl=kl,
        active=int((torch.cat(means).var(0, correction=0) > ACTIVE_VARIANCE).sum()),
        picture=(picture.cpu().numpy() * 255).round().astype(np.uint8),
    )
