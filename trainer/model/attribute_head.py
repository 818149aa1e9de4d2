"""What is trained: the VAE and, where labels are to shape its latents, a linear read-out of the attributes beside it.

The read-out is no part of the VAE. It pulls every attribute onto a straight direction of the latent space, which makes
it easier to read and to edit; once the training is over it is not needed. It is this project's, not the paper's.

Shapes: B batch, S image side, D latent size, A attributes.
"""

from __future__ import annotations

from torch import Tensor, nn

from trainer.model import VAE, Output


class Learner(nn.Module):
    """A VAE and its read-out, as one module: what spreads over processes or is compiled is one thing.

    Args:
        vae: the model.
        num_attributes: A; 0 for no read-out.

    Attributes:
        readout: z (B, D) to logits (B, A), or None.
    """

    def __init__(self, vae: VAE, num_attributes: int) -> None:
        super().__init__()
        self.vae = vae
        self.readout = nn.Linear(vae.config.latent_dim, num_attributes) if num_attributes else None
        if self.readout is not None:
            nn.init.zeros_(self.readout.weight)
            nn.init.zeros_(self.readout.bias)

    def forward(self, images: Tensor, noise: Tensor) -> Output:
        """Reconstructs images and reads their attributes off the same sampled latents.

        Args:
            images: (B, 3, S, S) float in [0, 1].
            noise: (B, D) standard normal.
        """
        output: Output = self.vae(images, noise)
        return output if self.readout is None else output._replace(logits=self.readout(output.latents).float())
