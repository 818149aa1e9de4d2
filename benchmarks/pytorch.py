"""PyTorch behind the engine's own interface, only to be timed: in any precision, channels last, eager or compiled."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from engine.arrays import Array, Bytes, Floats
from engine.backends import Backend
from trainer.model import VAE

Function = Callable[..., tuple[Tensor, ...]]


class PyTorchBackend(Backend):
    """The model from host to host, as an engine.

    On a GPU it copies from and to page-locked memory without waiting, waits once a call, and leaves the latents of an
    edit on the GPU, as the engine does; PyTorch itself keeps the memory on both sides from call to call.

    Args:
        model: The VAE in evaluation mode, on the CPU, float32; left as it is.
        dtype: What it computes in, such as float16.
        compiled: Compile each call for each batch size, on a GPU with CUDA graphs, which takes some ten seconds each;
            on a CPU a minute, and a C++ compiler.
        device: "cpu" or "cuda".
    """

    def __init__(self, model: VAE, dtype: torch.dtype, *, compiled: bool, device: str) -> None:
        half = copy.deepcopy(model).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoder, decoder = half.encoder, half.decoder
        self._device = device

        def encode(images: Tensor) -> tuple[Tensor, ...]:
            mu, log_var = encoder((images.permute(0, 3, 1, 2).float() / 255).to(dtype))
            return mu.float(), log_var.float()

        def decode(latents: Tensor) -> tuple[Tensor, ...]:
            levels = torch.round(decoder(latents.to(dtype)).float() * 255)
            return (levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous(),)

        def edit(images: Tensor, steps: Tensor) -> tuple[Tensor, ...]:
            mu, _ = encode(images)
            return *decode(mu + steps), mu

        torch.backends.cudnn.benchmark = True  # eager PyTorch tries cuDNN's algorithms, once a batch size
        torch._inductor.config.freezing = device == "cpu"
        # One compilation for each batch size, of which there are more than PyTorch expects.
        torch._dynamo.config.recompile_limit = 64

        def ready(function: Function) -> Function:
            mode = None if device == "cpu" else "reduce-overhead"
            return torch.compile(function, dynamic=False, mode=mode) if compiled else function

        self._encode, self._decode, self._edit = ready(encode), ready(decode), ready(edit)

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """Images, uint8 [N, S, S, 3], to `mu` and `log_var`, float32 [N, D] each."""
        mu, log_var = self._run(self._encode, images)
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, S, S, 3]."""
        return self._run(self._decode, latents)[0]

    def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
        """Images, uint8 [N, S, S, 3], and steps, float32 [N, D], to images decoded from mu + steps, and mu."""
        edited, mu = self._run(self._edit, images, steps)
        return edited, mu

    @torch.no_grad()
    def _run(self, function: Function, *inputs: Array) -> list[Array]:
        given = [torch.from_numpy(array) for array in inputs]
        if self._device == "cpu":
            return [result.numpy() for result in function(*given)]
        results = function(*(tensor.pin_memory().to(self._device, non_blocking=True) for tensor in given))
        hosts = [result.to("cpu", non_blocking=True) for result in results]  # into page-locked memory, too
        torch.cuda.current_stream().synchronize()
        return [host.numpy() for host in hosts]
