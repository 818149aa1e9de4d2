"""The truth that engines are held against: PyTorch eager in float32, behind the engine's own interface."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from trainer.model import VAE


class EagerBackend:
    """The model as it was trained, batch norm and all, with its own conversion from and to uint8.

    Args:
        model: The VAE in evaluation mode, on the CPU, float32.
    """

    def __init__(self, model: VAE) -> None:
        self._model = model

    def encode(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Images, uint8 [N, S, S, 3], to `mu` and `log_var`, float32 [N, D] each."""
        with torch.inference_mode():
            scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            mu, log_var = self._model.encoder(scaled)
            return mu.numpy(), log_var.numpy()

    def decode(self, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Latents, float32 [N, D], to images, uint8 [N, S, S, 3], rounded half to even."""
        with torch.inference_mode():
            levels = torch.round(self._model.decoder(torch.from_numpy(latents)) * 255)
            images: npt.NDArray[np.uint8] = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
            return images
