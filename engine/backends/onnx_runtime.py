"""ONNX Runtime, on the CPU or an NVIDIA GPU: the device decides on its provider, and precision is in the graphs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from engine.backends.base import CPU, CUDA, Backend, Bytes, Floats, Options, gpu_of, kind_of
from engine.errors import BackendError, BundleError

_PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider"}


class OnnxRuntimeBackend(Backend):
    """Encoder and decoder as two ONNX Runtime sessions.

    Args:
        encoder: Graph with input `images` uint8 [N, H, W, 3] and outputs `mu`, `log_var` float32 [N, D].
        decoder: Graph with input `latents` float32 [N, D] and output `images` uint8 [N, H, W, 3].
        options: Of these the device and the threads; what is FP16 in a graph is computed as FP32 on the CPU.

    Raises:
        BundleError: When a graph is missing, damaged, or has other inputs and outputs.
        BackendError: When this ONNX Runtime or this machine can't compute on the device.
    """

    def __init__(self, encoder: Path, decoder: Path, options: Options) -> None:
        self.check(options)
        self._encoder = _open(encoder, options, ["images"], ["mu", "log_var"])
        self._decoder = _open(decoder, options, ["latents"], ["images"])

    @classmethod
    def check(cls, options: Options) -> None:
        """Lets a device pass that this ONNX Runtime and this machine have."""
        if kind_of(options.device) == CUDA:
            _require_cuda(options)

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """Images, uint8 [N, H, W, 3], to `mu` and `log_var`, float32 [N, D] each."""
        mu, log_var = self._encoder.run(["mu", "log_var"], {"images": images})
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, H, W, 3]."""
        images: Bytes = self._decoder.run(["images"], {"latents": latents})[0]
        return images


def _require_cuda(options: Options) -> None:
    provider = _PROVIDERS[CUDA]
    if provider not in (found := onnxruntime.get_available_providers()):
        raise BackendError(
            f"this build of ONNX Runtime {onnxruntime.__version__} has no {provider} for NVIDIA GPUs (it has "
            f"{', '.join(found)}); pip uninstall onnxruntime, then pip install 'dfc-vae[gpu]'; or take --device cpu"
        )
    try:
        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), CUDA, gpu_of(options.device))
    except Exception as error:  # ONNX Runtime has a type for each way of failing
        raise BackendError(
            f"ONNX Runtime finds no NVIDIA GPU {options.device} that it can use ({_first_line(error)}); see what "
            "nvidia-smi says, or take --device cpu"
        ) from error


def _session_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads of the idle session would spin against those of the busy one: half the speed on few cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _provider_options(device: str) -> dict[str, str]:
    if kind_of(device) == CPU:
        return {}
    # The default tries every algorithm of cuDNN for each batch size that it meets: seconds, in the middle of serving.
    return {"device_id": str(gpu_of(device)), "cudnn_conv_algo_search": "HEURISTIC"}


def _open(path: Path, options: Options, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    if not path.is_file():
        raise BundleError(f"no ONNX graph at {path}")
    provider = _PROVIDERS[kind_of(options.device)]
    providers = [(provider, _provider_options(options.device))]
    try:
        session = onnxruntime.InferenceSession(str(path), _session_options(options.threads), providers=providers)
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
