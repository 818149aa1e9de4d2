"""ONNX Runtime: on the CPU in FP32 or on INT8 graphs, on an NVIDIA GPU on FP16 graphs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import BackendError, BundleError

try:
    import onnxruntime
except ImportError as error:
    raise BackendError(
        f"the bundle needs onnxruntime, which can't be imported ({error}); pip install 'dfc-vae[cpu]'"
    ) from error

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDERS = {"fp32": _CPU, "int8": _CPU, "fp16": _CUDA}
_OPTIONS: dict[str, dict[str, str]] = {
    _CPU: {},
    # The default tries every algorithm of cuDNN for each batch size that it meets: seconds, in the middle of serving.
    _CUDA: {"cudnn_conv_algo_search": "HEURISTIC"},
}


class OnnxRuntimeBackend:
    """Encoder and decoder as two ONNX Runtime sessions.

    Args:
        encoder: Graph with input `images` uint8 [N, H, W, 3] and outputs `mu`, `log_var` float32 [N, D].
        decoder: Graph with input `latents` float32 [N, D] and output `images` uint8 [N, H, W, 3].
        threads: Threads inside an operator; None takes every core that this process may use.
        precision: "fp32" or "int8" on the CPU, "fp16" on the GPU. The graphs hold the precision itself.

    Raises:
        BundleError: When a graph is missing, damaged, or has other inputs and outputs.
        BackendError: When this ONNX Runtime or this machine can't compute in the precision.
    """

    def __init__(
        self, encoder: str | Path, decoder: str | Path, threads: int | None = None, precision: str = "fp32"
    ) -> None:
        require_precision(precision)
        options = _session_options(threads or _available_cores())
        provider = _PROVIDERS[precision]
        self._encoder = _open(encoder, options, provider, ["images"], ["mu", "log_var"])
        self._decoder = _open(decoder, options, provider, ["latents"], ["images"])

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """Images, uint8 [N, H, W, 3], to `mu` and `log_var`, float32 [N, D] each."""
        mu, log_var = self._encoder.run(["mu", "log_var"], {"images": images})
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, H, W, 3]."""
        images: Bytes = self._decoder.run(["images"], {"latents": latents})[0]
        return images


def require_precision(precision: str) -> None:
    """Lets a precision pass that this ONNX Runtime and this machine can compute in.

    Raises:
        BackendError: otherwise; says what is missing.
    """
    if precision not in _PROVIDERS:
        raise BackendError(f"ONNX Runtime computes in {', '.join(_PROVIDERS)} here, not in {precision!r}")
    provider = _PROVIDERS[precision]
    if provider not in (found := onnxruntime.get_available_providers()):
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} computes in {precision} on NVIDIA GPUs only, and this build of "
            f"it has no {provider} (it has {', '.join(found)}); pip uninstall onnxruntime, then "
            "pip install 'dfc-vae[gpu]'; or take --precision fp32"
        )
    if provider == _CUDA:
        try:
            onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)
        except Exception as error:  # ONNX Runtime has a type for each way of failing
            raise BackendError(
                f"ONNX Runtime finds no NVIDIA GPU that it can use ({_first_line(error)}); see what nvidia-smi says, "
                "or take --precision fp32"
            ) from error


def _available_cores() -> int:
    return len(os.sched_getaffinity(0))


def _session_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads of the idle session would spin against those of the busy one: half the speed on few cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _open(path: str | Path, options: Any, provider: str, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    if not Path(path).is_file():
        raise BundleError(f"no ONNX graph at {path}")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, _OPTIONS[provider])])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types for a bad graph
        raise BundleError(f"ONNX Runtime can't open {path}: {error}") from error
    if provider not in (running := session.get_providers()):
        # It falls back to the CPU by itself, where FP16 is slower than FP32.
        raise BackendError(
            f"ONNX Runtime opened {path} on {', '.join(running)} instead of {provider}; its log says why"
        )
    found = ([value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()])
    if found != (list(inputs), list(outputs)):
        raise BundleError(
            f"{path} has inputs {found[0]} and outputs {found[1]}; the engine needs inputs {list(inputs)} "
            f"and outputs {list(outputs)}"
        )
    return session


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
