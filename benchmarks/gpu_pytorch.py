"""PyTorch on an NVIDIA GPU behind the engine's own interface, to compare with: FP16, channels last."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.backends import Backend
from trainer.model import VAE


class GpuBackend(Backend):
    """The model in FP16 on the first GPU, from host to host as an engine. No truth: only to be timed.

    Args:
        model: The VAE in evaluation mode, on the CPU; left as it is.
        compiled: Compile it for each batch size with CUDA graphs, which takes some ten seconds each.
    """

    def __init__(self, model: VAE, compiled: bool) -> None:
        half = copy.deepcopy(model).to("cuda", torch.float16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoder, decoder = half.encoder, half.decoder

        def encode(images: Tensor) -> tuple[Tensor, Tensor]:
            mu, log_var = encoder((images.permute(0, 3, 1, 2).float() / 255).half())
            return mu.float(), log_var.float()

        def decode(latents: Tensor) -> Tensor:
            levels = torch.round(decoder(latents.half()).float() * 255)
            return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

        # One compilation for each batch size, of which there are more than PyTorch expects.
        torch._dynamo.config.recompile_limit = 64
        mode = "reduce-overhead"
        self._encode = torch.compile(encode, dynamic=False, mode=mode) if compiled else encode
        self._decode = torch.compile(decode, dynamic=False, mode=mode) if compiled else decode

    def encode(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Images, uint8 [N, S, S, 3], to `mu` and `log_var`, float32 [N, D] each."""
        with torch.no_grad():
            mu, log_var = self._encode(_upload(images))
            return mu.cpu().numpy(), log_var.cpu().numpy()

    def decode(self, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Latents, float32 [N, D], to images, uint8 [N, S, S, 3]."""
        with torch.no_grad():
            images: npt.NDArray[np.uint8] = self._decode(_upload(latents)).cpu().numpy()
            return images


def _upload(array: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array).pin_memory().to("cuda", non_blocking=True)
