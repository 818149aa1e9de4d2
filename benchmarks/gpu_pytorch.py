"""PyTorch on an NVIDIA GPU behind the engine's own interface, to compare with: FP16, channels last."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.backends import Backend
from trainer.model import VAE

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class GpuBackend(Backend):
    """The model in FP16 on a GPU, from host to host as an engine. No truth: only to be timed.

    As the engine does, it keeps page-locked memory and memory of the GPU from call to call, copies without waiting,
    waits once a call, and leaves the latents of an edit on the GPU.

    Args:
        model: The VAE in evaluation mode, on the CPU; left as it is.
        compiled: Compile it for each batch size with CUDA graphs, which takes some ten seconds each.
        device: "cuda"; "cpu" rehearses.
    """

    def __init__(self, model: VAE, compiled: bool, device: str = "cuda") -> None:
        half = copy.deepcopy(model).to(device, torch.float16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoder, decoder = half.encoder, half.decoder
        self._staging = _Staging(device)

        def encode(images: Tensor) -> tuple[Tensor, ...]:
            mu, log_var = encoder((images.permute(0, 3, 1, 2).float() / 255).half())
            return mu.float(), log_var.float()

        def decode(latents: Tensor) -> tuple[Tensor, ...]:
            levels = torch.round(decoder(latents.half()).float() * 255)
            return (levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous(),)

        def edit(images: Tensor, steps: Tensor) -> tuple[Tensor, ...]:
            mu, _ = encode(images)
            return *decode(mu + steps), mu

        torch.backends.cudnn.benchmark = True  # eager PyTorch tries cuDNN's algorithms, once a batch size
        # One compilation for each batch size, of which there are more than PyTorch expects.
        torch._dynamo.config.recompile_limit = 64

        def ready(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
            return torch.compile(function, dynamic=False, mode="reduce-overhead") if compiled else function

        self._encode, self._decode, self._edit = ready(encode), ready(decode), ready(edit)

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """Images, uint8 [N, S, S, 3], to `mu` and `log_var`, float32 [N, D] each."""
        mu, log_var = self._run(self._encode, images=images)
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, S, S, 3]."""
        images: Bytes
        (images,) = self._run(self._decode, latents=latents)
        return images

    def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
        """Images, uint8 [N, S, S, 3], and steps, float32 [N, D], to images decoded from mu + steps, and mu."""
        edited, mu = self._run(self._edit, images=images, steps=steps)
        return edited, mu

    @torch.inference_mode()
    def _run(
        self, function: Callable[..., tuple[Tensor, ...]], **inputs: npt.NDArray[np.generic]
    ) -> list[npt.NDArray[Any]]:
        given = [self._staging.upload(name, array) for name, array in inputs.items()]
        return self._staging.download(function(*given))


class _Staging:
    """Memory that calls share: page-locked on the host, and on the device, by name or place."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def upload(self, name: str, array: npt.NDArray[np.generic]) -> Tensor:
        source = torch.from_numpy(array)
        host = self._take(source, "cpu", name)
        host.copy_(source)
        return self._take(source, self._device, name).copy_(host, non_blocking=True)

    def download(self, results: tuple[Tensor, ...]) -> list[npt.NDArray[Any]]:
        hosts = [self._take(result, "cpu", place) for place, result in enumerate(results)]
        for host, result in zip(hosts, results, strict=True):
            host.copy_(result, non_blocking=True)
        if self._device != "cpu":
            torch.cuda.current_stream().synchronize()
        return [host.numpy().copy() for host in hosts]

    def _take(self, like: Tensor, device: str, which: object) -> Tensor:
        """Memory of a tensor's shape and type, the same each time."""
        key = (which, device, like.dtype, tuple(like.shape))
        if key not in self._kept:
            pinned = device == "cpu" and self._device != "cpu"
            self._kept[key] = torch.empty(like.shape, dtype=like.dtype, device=device, pin_memory=pinned)
        return self._kept[key]
