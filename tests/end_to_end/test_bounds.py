"""Whatever the configuration allows is served with."""

from pathlib import Path

import grpc
import pytest
from gates import stub_of
from servers import ServerProcess

from engine.config import BOUNDS
from protos import dfcvae_pb2 as pb

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
        ServerProcess(["-m", "engine", "--bundle", str(tiny_bundle), *options], tmp_path) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        model = stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30, wait_for_ready=True)
        assert model.limits.max_queued_images == BOUNDS["max_queue"]._asdict()[end]
        answer = stub_of(channel).Sample(pb.SampleRequest(count=1), timeout=30, wait_for_ready=True)
        assert answer.images.raw.count == 1
        server.terminate()
        assert server.wait() == 0
