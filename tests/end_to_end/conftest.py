"""What many tests ask a real server through."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from servers import ServerProcess
from serving.requests import OPTIONS, stub_of


@pytest.fixture(scope="session")
def stub(server: ServerProcess) -> Iterator[Any]:
    """The methods of the server that tests share, with messages of any size."""
    with grpc.insecure_channel(server.target, OPTIONS) as channel:
        yield stub_of(channel)
