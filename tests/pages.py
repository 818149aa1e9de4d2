"""The page as a process, and what talks to it as its own JavaScript does."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from servers import ROOT, STRANGERS, environment_without_torch
from websockets import Origin
from websockets.sync.client import ClientConnection, connect

Bytes = npt.NDArray[np.uint8]


class PageProcess:
    """A page; entering its context waits until it listens, leaving it kills what still runs.

    Args:
        target: HOST:PORT of the server that it asks.
        folder: Where its stderr goes.
        options: Other flags.
        aligns: Whether it may import what aligns faces.
    """

    def __init__(self, target: str, folder: Path, options: Sequence[str] = (), aligns: bool = False) -> None:
        self._log = folder / "page.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "engine.page", "--target", target, "--port", "0", *options],
                cwd=ROOT,
                env=environment_without_torch(folder / "site", ("torch",) if aligns else STRANGERS),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.url = ""

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text()

    @property
    def place(self) -> str:
        """Its HOST:PORT."""
        return self.url.removeprefix("http://").rstrip("/")

    def __enter__(self) -> "PageProcess":
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("page on http://"), f"the page said {line!r}\n{self.log}"
        self.url = line.split()[2]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Visitor:
    """An open socket of a page."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def ask(self, ask: str, file: bytes | None = None, **fields: Any) -> tuple[dict[str, Any], Bytes]:
        """What comes back: the header, and the bytes of the pixels."""
        header = json.dumps({"ask": ask, **fields})
        self.socket.send(header if file is None else header.encode() + b"\n" + file)
        answer = self.socket.recv(timeout=60)
        assert isinstance(answer, bytes)
        head, _, pixels = answer.partition(b"\n")
        return json.loads(head), np.frombuffer(pixels, np.uint8)

    def images(self, ask: str, file: bytes | None = None, **fields: Any) -> Bytes:
        """The images of an ask that goes well, uint8 [N, 8, 8, 3]."""
        told, pixels = self.ask(ask, file, **fields)
        assert "error" not in told, told
        return pixels.reshape(-1, 8, 8, 3)


@contextmanager
def visit(page: PageProcess, origin: str | None = None) -> Iterator[Visitor]:
    """Opens the socket as the page does, which asks for the model first."""
    url = f"ws://{page.place}/session"
    with connect(url, origin=Origin(origin or f"http://{page.place}"), compression=None, proxy=None) as socket:
        yield Visitor(socket)
