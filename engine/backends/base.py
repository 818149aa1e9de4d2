"""What every backend is: a runtime that turns a contiguous batch into a batch. It knows neither queues nor wires."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.arrays import Array, Bytes, Floats
from engine.errors import BundleError

CPU, CUDA = "cpu", "cuda"
"""Kinds of devices."""

Names = tuple[list[str], list[str]]
"""Names of a graph's inputs, and of its outputs."""

_DEVICE = re.compile(rf"{CPU}|{CUDA}(:\d{{1,3}})?")
# The container's (cgroup v2): microseconds of processor time, in a period of so many.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")

DEVICE_RULE = f"must be {CPU}, {CUDA}, or one of several GPUs, such as {CUDA}:1"


def is_device(name: str) -> bool:
    """Whether it names a device: "cpu", "cuda" for the first GPU that CUDA sees, "cuda:1" for the second, and so on."""
    return _DEVICE.fullmatch(name) is not None


def kind_of(device: str) -> str:
    """The kind of a device, `CPU` or `CUDA`, without its number."""
    return device.partition(":")[0]


def gpu_of(device: str) -> int:
    """Number of a GPU among those that CUDA sees."""
    return int(device.partition(":")[2] or 0)


def cores() -> int:
    """Cores that this process may use: those that it may run on, but no more than its container's quota is worth."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):  # no container, or "max": no quota
        return cores
    return max(1, min(cores, quota // period))


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a backend opens two graphs."""

    backend: str = "onnxruntime"  # in the registry
    device: str = CPU  # as `is_device` says
    precision: str = "fp32"
    max_batch_size: int = 32  # largest batch that matters, images
    edit: Path | None = None  # both as one graph, for a backend that can't join them itself
    split: bool = False  # as `engine.bundle.Engine` says
    threads: int = field(default_factory=cores)

    @property
    def together(self) -> bool:
        """Whether several threads of a CPU compute each batch together."""
        return self.device == CPU and self.threads > 1 and not self.split


class Backend(ABC):
    """The two graphs of a model. Inputs are C-contiguous; the arrays that come back belong to the caller.

    Batches come one after the other, from any thread. A class of the registry is made with the files of encoder and
    decoder and `Options`, and calls its own `check` first. The encoder's file has the input `images`, uint8
    [N, H, W, 3], and the outputs `mu` and `log_var`, float32 [N, D]; the decoder's the input `latents`, float32 [N, D],
    and the output `images`, uint8 [N, H, W, 3].

    Raises:
        BundleError: When a file is missing, damaged, or has other inputs and outputs.
        BackendError: As `check`.
    """

    overlaps: int = 0
    """How many other batches may come while it is at one, as it computes them together in less time."""
    together: bool = False
    """Whether several threads compute a batch together, and wait for each other, rather than a share of it each."""

    @classmethod  # noqa: B027 - what needs nothing has nothing to check
    def check(cls, options: Options) -> None:
        """Lets options pass that this machine can compute with.

        Raises:
            BackendError: otherwise; says what is missing.
        """

    @abstractmethod
    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """Images, uint8 [N, H, W, 3] RGB, to `mu` and `log_var` of their posterior, float32 [N, D] each."""

    @abstractmethod
    def decode(self, latents: Floats) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, H, W, 3] RGB."""

    def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
        """Encodes images, uint8 [N, H, W, 3] RGB, adds steps to mu, float32 [N, D], and decodes.

        Returns:
            Edited images, uint8 [N, H, W, 3] RGB, and mu before the addition, float32 [N, D].
        """
        mu, _ = self.encode(images)
        return self.decode(mu + steps), mu

    def close(self) -> None:  # noqa: B027 - the end of the object does where nothing lies outside of Python
        """Frees what it holds outside of Python. No batch may be in it, and none may come."""


def require_names(path: Path, found: Names, needed: Names) -> None:
    """Lets an ONNX graph pass that has the inputs and outputs that it must have, by name and in order.

    Raises:
        BundleError: it has others.
    """
    if found != needed:
        raise BundleError(
            f"{path} has inputs {found[0]} and outputs {found[1]}; the engine needs inputs {needed[0]} "
            f"and outputs {needed[1]}"
        )


def bucket_sizes(largest: int) -> list[int]:
    """1, 2, 4 ... and `largest`: the few sizes that batches are computed in, where each size has a cost of its own.

    A batch of n images runs in the next one. Rows beyond n hold leftovers, whose results nobody reads.
    """
    return [*(2**power for power in range((largest - 1).bit_length())), largest]


def in_parts(run: Callable[..., Sequence[Array]], largest: int, *batches: Array) -> Sequence[Array]:
    """Computes batches [N, ...], one for each input, by a function of at most `largest` rows; in parts beyond."""
    starts = range(0, max(len(batches[0]), 1), largest)
    parts = [run(*(batch[start : start + largest] for batch in batches)) for start in starts]
    return parts[0] if len(parts) == 1 else [np.concatenate(results) for results in zip(*parts, strict=True)]
