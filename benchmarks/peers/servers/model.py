"""The job that every server does: Edit of raw images, the bundle's first attribute by 1; plain or with our engine.

A server is told by its environment: PEER_BUNDLE, PEER_PORT, PEER_THREADS, and PEER_ENGINE=1 for our engine.
"""

import os
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from engine.backends import open_backend
from engine.bundle import DECODER, ENCODER, Bundle

Bytes = npt.NDArray[np.uint8]

PORT = int(os.environ["PEER_PORT"])
MAX_BATCH = 32


class Model:
    """Edits a batch. Plain, it is ONNX Runtime with its own options and the portable graphs; any thread may call it."""

    def __init__(self) -> None:
        bundle = Bundle.load(Path(os.environ["PEER_BUNDLE"]))
        threads = int(os.environ["PEER_THREADS"])
        self.size = bundle.manifest.image_size
        self._step = bundle.directions.move([(bundle.directions.names[0], 1.0)]).step
        self._engine = open_backend(bundle, threads) if os.environ.get("PEER_ENGINE") == "1" else None
        self._lock = threading.Lock()
        if self._engine is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self._encoder, self._decoder = (
                onnxruntime.InferenceSession(bundle.path / name, options, providers=["CPUExecutionProvider"])
                for name in (ENCODER, DECODER)
            )

    def edit(self, images: Bytes) -> Bytes:
        """Images, uint8 [N, S, S, 3], edited."""
        if self._engine is not None:
            steps = np.tile(self._step, (len(images), 1))
            with self._lock:
                edited: Bytes = self._engine.edit(np.ascontiguousarray(images), steps)[0]
            return edited
        (mu,) = self._encoder.run(["mu"], {self._encoder.get_inputs()[0].name: images})
        (decoded,) = self._decoder.run(None, {self._decoder.get_inputs()[0].name: mu + self._step})
        return np.asarray(decoded)

    def read(self, data: bytes) -> Bytes:
        """One image of its bytes."""
        return np.frombuffer(data, np.uint8).reshape(self.size, self.size, 3)
