"""Whatever the configuration allows is served with."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter
from servers import server_of

from engine.client import Client
from engine.config import ServerConfig

FIELDS = TypeAdapter(ServerConfig).json_schema()["properties"]

# The largest of these are for machines and bundles that a test hasn't got, or for patience.
LEFT_OUT = {"port", "max_delay_ms"}
SMALLEST = {"integer": 0, "number": 0.001}


@pytest.mark.parametrize(
    ("end", "above_zero"),
    [("minimum", False), ("minimum", True), ("maximum", False)],  # of many numbers, 0 means that there is no limit
)
def test_the_smallest_and_the_largest_numbers_are_served_with(
    tiny_bundle: Path, tmp_path: Path, end: str, above_zero: bool
) -> None:
    options = [
        f"--{name.replace('_', '-')}={rule[end] or above_zero * SMALLEST[rule['type']]:.15g}"
        for name, rule in FIELDS.items()
        if end in rule and name not in LEFT_OUT
    ]
    assert len(options) >= 18
    with (
        server_of(tiny_bundle, tmp_path, *options) as server,
        Client(server.target) as client,  # comes again where an idle connection of a millisecond is closed under a call
    ):
        assert client.model().max_queued_images == FIELDS["max_queue"][end]
        assert len(client.sample(1)) == 1
        server.terminate()
        assert server.wait() == 0
