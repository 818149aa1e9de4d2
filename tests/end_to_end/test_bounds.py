"""Whatever the configuration allows is served with."""

from pathlib import Path

import pytest
from servers import server_of

from engine.client import Client
from engine.config import BOUNDS

# The largest of these are for machines and bundles that a test hasn't got, or for patience.
LEFT_OUT = {"port", "metrics_port", "threads", "max_batch", "max_delay_ms"}


@pytest.mark.parametrize("end", ["least", "most"])
def test_the_smallest_and_the_largest_numbers_are_served_with(tiny_bundle: Path, tmp_path: Path, end: str) -> None:
    options = [
        f"--{name.replace('_', '-')}={getattr(bounds, end):.15g}"
        for name, bounds in BOUNDS.items()
        if name not in LEFT_OUT
    ]
    with (
        server_of(tiny_bundle, tmp_path, *options) as server,
        Client(server.target) as client,  # comes again where an idle connection of a millisecond is closed under a call
    ):
        assert client.model().max_queued_images == BOUNDS["max_queue"]._asdict()[end]
        assert len(client.sample(1)) == 1
        server.terminate()
        assert server.wait() == 0
