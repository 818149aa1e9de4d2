"""A real server whose compute a test holds up: see end_to_end/gated_server.py."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from servers import END_TO_END, ServerProcess
from serving.requests import OPTIONS, stub_of
from tiny_model import IMAGE_SIZE


def constant(value: int, count: int = 1) -> npt.NDArray[np.uint8]:
    """Images [count, 8, 8, 3] that can be told from others in `Gate.batches`."""
    return np.full((count, IMAGE_SIZE, IMAGE_SIZE, 3), value, np.uint8)


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that is sure to come (or else for the test's time limit)."""
    while not condition():
        time.sleep(0.005)


class Gate:
    """What a test holds in its hands of a gated server."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server = server
        self._folder = folder

    def close(self) -> None:
        """Lets no batch through from now on."""
        (self._folder / "batches").write_text("")
        (self._folder / "closed").touch()

    def open(self) -> None:
        """Lets batches through."""
        (self._folder / "closed").unlink()

    def batches(self) -> list[str]:
        """The batches since the gate was closed, as `gated_server.py` writes them."""
        return (self._folder / "batches").read_text().splitlines()


def gated_command(bundle: Path, folder: Path, *options: str) -> list[str]:
    """What Python is to run for a server that reads its gate in `folder`."""
    return [str(END_TO_END / "gated_server.py"), str(folder), "--bundle", str(bundle), *options]


@contextmanager
def gated_server(bundle: Path, folder: Path, *options: str) -> Iterator[Gate]:
    """A gated server that serves; its gate is open."""
    with ServerProcess(gated_command(bundle, folder, *options), folder) as server:
        yield Gate(server, folder)


@contextmanager
def connected(target: str) -> Iterator[Any]:
    """The methods of a server, as they are on the wire, with messages of any size."""
    with grpc.insecure_channel(target, OPTIONS) as channel:
        yield stub_of(channel)


def list_of(stream: Any) -> tuple[list[int], grpc.StatusCode]:
    """The ids of a stream's answers, and how it ended."""
    ids = []
    with suppress(grpc.RpcError):
        for answer in stream:
            assert answer.WhichOneof("outcome") == "edited", answer.error
            ids.append(answer.id)
    return ids, stream.code()
