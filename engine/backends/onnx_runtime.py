"""ONNX Runtime on the CPU."""

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


class OnnxRuntimeBackend:
    """Encoder and decoder as two ONNX Runtime sessions.

    Args:
        encoder: Graph with input `images` uint8 [N, H, W, 3] and outputs `mu`, `log_var` float32 [N, D].
        decoder: Graph with input `latents` float32 [N, D] and output `images` uint8 [N, H, W, 3].
        threads: Threads inside an operator; None takes every core that this process may use.

    Raises:
        BundleError: When a graph is missing, damaged, or has other inputs and outputs.
    """

    def __init__(self, encoder: str | Path, decoder: str | Path, threads: int | None = None) -> None:
        options = _session_options(threads or _available_cores())
        self._encoder = _open(encoder, options, ["images"], ["mu", "log_var"])
        self._decoder = _open(decoder, options, ["latents"], ["images"])

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """Images, uint8 [N, H, W, 3], to `mu` and `log_var`, float32 [N, D] each."""
        mu, log_var = self._encoder.run(["mu", "log_var"], {"images": images})
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, H, W, 3]."""
        images: Bytes = self._decoder.run(["images"], {"latents": latents})[0]
        return images


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


def _open(path: str | Path, options: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    if not Path(path).is_file():
        raise BundleError(f"no ONNX graph at {path}")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types for a bad graph
        raise BundleError(f"ONNX Runtime can't open {path}: {error}") from error
    found = ([value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()])
    if found != (list(inputs), list(outputs)):
        raise BundleError(
            f"{path} has inputs {found[0]} and outputs {found[1]}; the engine needs inputs {list(inputs)} "
            f"and outputs {list(outputs)}"
        )
    return session
