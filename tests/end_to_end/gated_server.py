"""The real server around a backend that a test opens and closes: `gated_server.py FOLDER --bundle ...`.

While FOLDER/closed exists, every batch waits. FOLDER/batches gets one line per batch: the graph, and the
first number of each image or latent in it (tests send constant images). Value 13 makes a batch fail.

Python's collector is off. On SIGUSR1 it looks once, and FOLDER/garbage gets two lines with the types of objects that
calls shouldn't leave behind: in cycles frames, errors, and whatever is the engine's own; then calls, requests and
answers that are alive.
"""

import asyncio
import gc
import signal
import sys
import time
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from engine.arrays import Bytes, Floats
from engine.backends import Backend, open_backend
from engine.batching.fair_queue import Request
from engine.config import load_config
from engine.server import serve
from engine.service.interceptor import CallScope
from engine.service.request_scope import RequestScope
from engine.telemetry import logs
from engine.transport.server import ServerCall


class GatedBackend(Backend):
    """Lets a backend compute only while the gate is open."""

    def __init__(self, inner: Backend, folder: Path) -> None:
        self._inner = inner
        self._closed = folder / "closed"
        self._batches = folder / "batches"

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        self._pass("encode", images)
        return self._inner.encode(images)

    def decode(self, latents: Floats) -> Bytes:
        self._pass("decode", latents)
        return self._inner.decode(latents)

    def _pass(self, graph: str, batch: Any) -> None:
        values = [int(item.flat[0]) for item in batch]
        with self._batches.open("a") as file:
            file.write(" ".join(map(str, [graph, *values])) + "\n")
        while self._closed.exists():
            time.sleep(0.002)
        if 13 in values:
            raise RuntimeError("a secret of the backend")


def collect(folder: Path) -> None:
    """Writes down what the collector finds."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    kinds = [type(found) for found in gc.garbage]
    gc.set_debug(0)
    gc.garbage.clear()
    gc.collect()
    cycles = [kind for kind in kinds if _is_telling(kind)]
    alive = [type(found) for found in gc.get_objects() if _belongs_to_a_call(type(found))]
    lines = (" ".join(sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in found)) for found in (cycles, alive))
    (folder / "garbage.new").write_text("\n".join(lines))
    (folder / "garbage.new").rename(folder / "garbage")


def _is_telling(kind: type) -> bool:
    own = kind.__module__.partition(".")[0] in ("engine", "dfcvae_pb2", "protos", "grpc")
    return own or issubclass(kind, BaseException) or kind.__name__ in ("frame", "traceback", "coroutine")


def _belongs_to_a_call(kind: type) -> bool:
    return kind in (Request, ServerCall, CallScope, RequestScope) or (
        kind.__name__.endswith(("Request", "Response")) and issubclass(kind, Message)
    )


def main() -> None:
    folder, *arguments = sys.argv[1:]
    gc.disable()
    signal.signal(signal.SIGUSR1, lambda *_: collect(Path(folder)))
    config = load_config(arguments)
    logs.set_up(config.log_level, config.log_format)
    asyncio.run(serve(config, lambda bundle: GatedBackend(open_backend(bundle), Path(folder))))


if __name__ == "__main__":
    main()
