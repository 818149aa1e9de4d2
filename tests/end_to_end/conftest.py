"""What many tests ask a real server through."""

from collections.abc import Iterator
from typing import Any

import pytest
from gates import connected
from servers import ServerProcess


@pytest.fixture(scope="session")
def stub(server: ServerProcess) -> Iterator[Any]:
    """The methods of the server that tests share."""
    with connected(server.target) as opened:
        yield opened
