"""Envoy itself, run with deploy/envoy.yaml in front of two servers."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from servers import ROOT, server_of
from tiny_model import IMAGE_SIZE, random_images

from protos import dfcvae_pb2 as pb
from protos.dfcvae_pb2_grpc import LatentEngineStub

ENVOY = shutil.which("envoy", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
pytestmark = pytest.mark.skipif(ENVOY is None, reason="needs envoy")


@contextmanager
def _proxy(folder: Path, targets: list[str]) -> Iterator[str]:
    """Envoy in front of two servers, whose ports take the places of those in the file; gives its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    text = (ROOT / "deploy" / "envoy.yaml").read_text()
    ports = {8080: port, 50051: targets[0].rpartition(":")[2], 50052: targets[1].rpartition(":")[2]}
    for written, real in ports.items():
        assert text.count(f"port_value: {written}") == 1
        text = text.replace(f"port_value: {written}", f"port_value: {real}")
    file = folder / "envoy.yaml"
    file.write_text(text)
    command = [str(ENVOY), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "-c", str(file)]
    with (folder / "envoy.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def test_its_file_is_valid() -> None:
    command = [str(ENVOY), "--mode", "validate", "-c", str(ROOT / "deploy" / "envoy.yaml")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_call_fails_while_a_server_leaves(tiny_bundle: Path, tmp_path: Path) -> None:
    pixels = random_images(1, 0)
    images = pb.ImageBatch(raw=pb.RawImages(count=1, height=IMAGE_SIZE, width=IMAGE_SIZE, data=pixels.tobytes()))
    edit = pb.EditRequest(images=images, edits=[pb.Edit(attribute="Smiling", strength=1.0)])
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with (
        server_of(tiny_bundle, tmp_path / "one") as leaving,
        server_of(tiny_bundle, tmp_path / "two") as staying,
        _proxy(tmp_path, [leaving.target, staying.target]) as target,
        grpc.insecure_channel(target) as channel,
    ):
        stub = LatentEngineStub(channel)  # type: ignore[no-untyped-call]
        answer = None
        while answer is None:  # Envoy looks at the servers' health first
            with suppress(grpc.RpcError):
                answer = stub.Edit(edit, timeout=30)
            time.sleep(0.05)
        for call in range(60):
            if call == 20:
                leaving.terminate()
            assert stub.Edit(edit, timeout=30) == answer
            time.sleep(0.02)
        assert leaving.wait() == 0
        requests = [
            pb.EditStreamRequest(id=1, images=images, edits=edit.edits),
            pb.EditStreamRequest(id=2, edits=edit.edits),
        ]
        assert [each.edited.images for each in stub.EditStream(iter(requests), timeout=30)] == [answer.images] * 2
