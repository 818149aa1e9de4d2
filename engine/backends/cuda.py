"""The few calls of the CUDA runtime that a backend makes, each with its return code checked."""

import ctypes
import importlib
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import BackendError


class Cuda:
    """The CUDA runtime through cuda-bindings, on one GPU of those that are visible.

    Raises:
        BackendError: When cuda-bindings, the NVIDIA driver or the GPU is missing; says which.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        try:
            self._api: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise BackendError(
                f"GPUs need cuda-bindings, which can't be imported ({error}); pip install 'cuda-bindings<13', "
                "for CUDA 13 'cuda-bindings<14'"
            ) from error
        failed, *found = self._api.cudaGetDeviceCount()
        if int(failed) or not found[0]:
            raise BackendError(
                f"CUDA finds no GPU that it can use ({self._describe(failed) if int(failed) else 'none is visible'}); "
                "a GPU bundle needs an NVIDIA GPU with its driver: see what nvidia-smi says, or take --backend "
                "openvino, for a bundle that is there already with: python -m export.retarget"
            )
        if number >= found[0]:
            last = f"cuda:{found[0] - 1}" if found[0] > 1 else "cuda"
            raise BackendError(f"CUDA finds no GPU cuda:{number}; the last one that it can use is {last}")

    def select(self) -> None:
        """Makes this GPU the one that the calling thread works on: CUDA asks each thread by itself."""
        self.call("cudaSetDevice", self.number)

    def call(self, function: str, *arguments: Any) -> Any:
        """Calls a function of the runtime by its name, without the error code that it returns first.

        Raises:
            BackendError: When the code isn't success.
        """
        error, *values = getattr(self._api, function)(*arguments)
        if int(error):
            raise BackendError(f"{function} failed: {self._describe(error)}")
        return values[0] if len(values) == 1 else tuple(values)

    def gpu(self) -> dict[str, str]:
        """Name and compute capability of the GPU: {"gpu": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0"}."""
        properties = self.call("cudaGetDeviceProperties", self.number)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        return {"gpu": name.strip("\0 "), "compute_capability": f"{properties.major}.{properties.minor}"}

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array in page-locked memory, zeroed; free it with `cudaFreeHost(array.ctypes.data)` after its last use."""
        size = prod(shape) * np.dtype(dtype).itemsize
        pointer = self.call("cudaHostAlloc", size, 0)
        memory = (ctypes.c_uint8 * size).from_address(int(pointer))
        array = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        array[...] = 0
        return array

    def copy_in(self, device: int, host: npt.NDArray[Any], stream: Any) -> None:
        """Queues the copy of a page-locked array to the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", device, host.ctypes.data, host.nbytes, kind, stream)

    def copy_out(self, host: npt.NDArray[Any], device: int, stream: Any) -> None:
        """Queues the copy of device memory to a page-locked array."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", host.ctypes.data, device, host.nbytes, kind, stream)

    def begin_capture(self, stream: Any) -> None:
        """Records what this thread queues on the stream, until `cudaStreamEndCapture`, instead of running it."""
        # Thread-local: another model may be loading meanwhile, and its allocations must not end the capture.
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)

    def _describe(self, error: Any) -> str:
        _, text = self._api.cudaGetErrorString(error)
        return f"{text.decode() if isinstance(text, bytes) else text}, code {int(error)}"
