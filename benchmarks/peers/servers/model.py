"""The job that every server does: Edit of raw images, the bundle's first attribute by 1; plain or with our engine.

A server is told by its environment: PEER_BUNDLE, PEER_PORT, PEER_THREADS, and PEER_ENGINE=1 for our engine.
"""

import os
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from plain import PlainRuntime

from engine.arrays import Bytes
from engine.backends import open_backend
from engine.bundle import Bundle

PORT = int(os.environ["PEER_PORT"])
MAX_BATCH = 32


class Model:
    """Edits a batch; any thread may call it. Plain, it is ONNX Runtime with its own options and the portable graphs."""

    def __init__(self) -> None:
        bundle = Bundle.load(Path(os.environ["PEER_BUNDLE"]))
        threads, ours = int(os.environ["PEER_THREADS"]), os.environ["PEER_ENGINE"] == "1"
        self.size = bundle.manifest.image_size
        self._step = bundle.directions.move([(bundle.directions.names[0], 1.0)]).step
        self._backend = open_backend(bundle, threads) if ours else PlainRuntime(bundle.path, threads)
        self._turn = threading.Lock() if ours else nullcontext()

    def edit(self, images: Bytes) -> Bytes:
        """Images, uint8 [N, S, S, 3], edited."""
        with self._turn:
            return self._backend.edit(np.ascontiguousarray(images), np.tile(self._step, (len(images), 1)))[0]

    def read(self, data: bytes) -> Bytes:
        """One image of its bytes."""
        return np.frombuffer(data, np.uint8).reshape(self.size, self.size, 3)
