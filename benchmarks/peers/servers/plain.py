"""ONNX Runtime as its users have it: the portable graphs of a bundle, and its own options but for the threads."""

from pathlib import Path

import numpy as np
import onnxruntime

from engine.arrays import Bytes, Floats
from engine.backends import Backend
from engine.bundle import DECODER, ENCODER


class PlainRuntime(Backend):
    """Computes in `threads` threads, or in as many as it takes itself; any number of calls at once."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in (ENCODER, DECODER)
        )

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """Means and log variances."""
        mu, log_var = self._encoder.run(["mu", "log_var"], {"images": images})
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """Images."""
        (images,) = self._decoder.run(["images"], {"latents": latents})
        return np.asarray(images)
