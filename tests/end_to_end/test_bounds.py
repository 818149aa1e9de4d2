"""Whatever the configuration allows is served with."""

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from servers import server_of

from engine.client import Client
from engine.config import ServerConfig, load_config
from engine.errors import StartupError

TYPES = {name: rule.get("type") for name, rule in TypeAdapter(ServerConfig).json_schema()["properties"].items()}
RULE = re.compile(r"must be (0, or )?from ([0-9.]+) to ([0-9]+), not")

# The largest of these are for machines and bundles that a test hasn't got, or for patience.
LEFT_OUT = {"port", "max_delay_ms"}
NUMBERS = [name for name, kind in TYPES.items() if kind in ("integer", "number") and name not in LEFT_OUT]


def bounds(name: str) -> tuple[bool, str, str]:
    """Whether 0 is allowed beside the range, and the range's ends, as a refusal tells them."""
    with pytest.raises(StartupError) as refused:
        load_config(["--bundle", "bundle", f"--{name.replace('_', '-')}=-{10**12}"])
    found = RULE.search(str(refused.value))
    assert found, str(refused.value)
    return found[1] is not None, found[2], found[3]


def end_of(name: str, end: str) -> str:
    """The smallest or the largest number, or the smallest above 0: of many numbers, 0 means that there is no limit."""
    or_zero, low, high = bounds(name)
    if end == "largest":
        return high
    if end == "smallest":
        return "0" if or_zero else low
    return "0.001" if low == "0" and TYPES[name] == "number" else low


@pytest.mark.parametrize("end", ["smallest", "smallest above 0", "largest"])
def test_the_smallest_and_the_largest_numbers_are_served_with(tiny_bundle: Path, tmp_path: Path, end: str) -> None:
    assert len(NUMBERS) >= 18
    given = {name: end_of(name, end) for name in NUMBERS}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    with (
        server_of(tiny_bundle, tmp_path, *options) as server,
        Client(server.target) as client,  # comes again where an idle connection of a millisecond is closed under a call
    ):
        assert client.model().max_queued_images == int(given["max_queue"])
        assert len(client.sample(1)) == 1
        server.terminate()
        assert server.wait() == 0
