"""The real server around a backend that fails on marked images: `poisoned_server.py FILE --bundle ...`.

For every batch that fails, FILE gets a line: a JSON list of the CRC-32 of each image in it.
"""

import asyncio
import json
import sys
import zlib
from pathlib import Path

import numpy as np

from engine.arrays import Bytes, Floats
from engine.backends import Backend, open_backend
from engine.config import load_config
from engine.server import serve
from engine.telemetry import logs

MARK = np.frombuffer(b"poison" * 2, np.uint8)  # first bytes of an image that makes its batch fail
SECRET = "a secret of the backend"


class PoisonedBackend(Backend):
    """Computes as another backend does, but raises on marked images."""

    def __init__(self, inner: Backend, failures: Path) -> None:
        self._inner = inner
        self._failures = failures

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """As the inner one, unless an image is marked."""
        flat = images.reshape(len(images), -1)
        if (flat[:, : len(MARK)] == MARK).all(axis=1).any():
            with self._failures.open("a") as file:
                file.write(json.dumps([zlib.crc32(image.tobytes()) for image in flat]) + "\n")
            raise RuntimeError(SECRET)
        return self._inner.encode(images)

    def decode(self, latents: Floats) -> Bytes:
        """As the inner one."""
        return self._inner.decode(latents)


def main() -> None:
    """Serves until SIGTERM."""
    failures, *arguments = sys.argv[1:]
    config = load_config(arguments)
    logs.set_up(config.log_level, config.log_format)
    asyncio.run(serve(config, lambda bundle: PoisonedBackend(open_backend(bundle), Path(failures))))


if __name__ == "__main__":
    main()
