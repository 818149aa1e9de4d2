"""Where a run computes, and in which arithmetic."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.errors import ConfigError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Placement:
    """Where and in which arithmetic a run computes."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, device_name: str = "auto", precision: str = "auto") -> "Placement":
        """Resolves `--device` and `--precision`, each of which may be "auto".

        On a GPU, FP32 is never TF32 from then on.
        Of the processes that torchrun starts on one machine, each takes a GPU of its own.

        Raises:
            ConfigError: a GPU is asked for and there is none left, or the device is another word.
        """
        if device_name not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device {device_name}: must be auto, cpu or cuda")
        gpu = torch.cuda.is_available()
        if device_name == "cuda" and not gpu:
            raise ConfigError("--device cuda: PyTorch sees no NVIDIA GPU here; use --device cpu or auto")
        if gpu and device_name != "cpu":
            number = int(os.environ.get("LOCAL_RANK", "0"))
            if number >= torch.cuda.device_count():
                raise ConfigError(
                    f"torchrun started more processes here than the {torch.cuda.device_count()} GPU(s) of this "
                    "machine; lower --nproc-per-node, or add --device cpu"
                )
            device, bf16 = torch.device("cuda", number), torch.cuda.is_bf16_supported(including_emulation=False)
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        else:
            device, bf16 = torch.device("cpu"), _cpu_has_bf16()
        fast = precision == "bf16" or (precision == "auto" and bf16)
        return cls(device, torch.bfloat16 if fast else torch.float32)

    def tune(self, deterministic: bool = False) -> None:
        """Sets what makes a training faster in this process and changes no result.

        Args:
            deterministic: on a GPU, take the algorithms that give the same bits every time, not the fastest ones.
                VGG's pooling is among the few operations that PyTorch may warn of; as its windows do not overlap, no
                two threads add to one value, and it is deterministic all the same.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
            return
        torch.backends.cudnn.benchmark = not deterministic  # the shapes are the same in every step
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(deterministic, warn_only=True)

    def module(self, module: ModuleT) -> ModuleT:
        """Moves a module to the device, channels last in memory."""
        return module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def images(self, batch: NDArray[np.uint8]) -> Tensor:
        """Packed (B, S, S, 3) uint8 to (B, 3, S, S) float32 in [0, 1] on the device."""
        return torch.from_numpy(np.require(batch, requirements="W")).to(self.device).permute(0, 3, 1, 2).float() / 255

    def autocast(self) -> torch.autocast:
        """The context in which the VAE runs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


_seeding = Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Has PyTorch draw from a seed within the block, for one thread at a time; then it goes on as it was."""
    with _seeding, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; elsewhere bf16 is emulated and slower than fp32."""
    has = torch.cpu.get_capabilities()
    return "AVX512" in torch.backends.cpu.get_cpu_capability() and any(map(has.get, ("avx512_bf16", "amx_bf16")))


def keep_freed_memory() -> None:
    """Has glibc keep the large blocks that a step frees, rather than fault them in again in the next."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # other C libraries have none
        largest = 2**31 - 1
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(parameter, largest)
