"""Server and client on the oldest gRPC and protobuf that pyproject.toml allows; other tests have those of the lock."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from oldest import environment_with_oldest, needs_oldest
from servers import ROOT, ServerProcess, environment_without_torch
from tiny_model import random_images

from engine.client import Client

_CLIENT = """
import asyncio
import sys

import google.protobuf
import grpc
import numpy as np

from engine.client import AsyncClient, Client, ClientError

target, image_file, edited_file = sys.argv[1:]
images = np.load(image_file)


async def edit_again():
    async with AsyncClient(target) as client:
        try:
            await client.edit(images, {"Nobody": 1.0})
        except ClientError as error:
            print(error.status, error.violations[0].field)
        async with client.stream() as slider:
            return await slider.edit(images, {"Smiling": 1.5})


print(grpc.__version__, google.protobuf.__version__)
with Client(target) as client:
    edited = client.edit(images, {"Smiling": 1.5})
assert (asyncio.run(edit_again()) == edited).all()
np.save(edited_file, edited)
"""


@needs_oldest
def test_the_oldest_grpc_serves_an_edit_and_asks_for_one(tiny_bundle: Path, tmp_path: Path) -> None:
    environment = environment_with_oldest(environment_without_torch(tmp_path / "site"))
    images, image_file, edited_file = random_images(3, seed=0), tmp_path / "images.npy", tmp_path / "edited.npy"
    np.save(image_file, images)
    with ServerProcess(["-m", "engine", "--bundle", str(tiny_bundle)], tmp_path, variables=environment) as server:
        result = subprocess.run(
            [sys.executable, "-c", _CLIENT, server.target, str(image_file), str(edited_file)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        with Client(server.target) as newest:
            expected = newest.edit(images, {"Smiling": 1.5})
        server.terminate()
        assert server.wait() == 0
    assert result.stdout.splitlines() == [_versions(), "NOT_FOUND edits[0]"]
    np.testing.assert_array_equal(np.load(edited_file), expected)


def _versions() -> str:
    """Those that pyproject.toml names as the least."""
    text = (ROOT / "pyproject.toml").read_text()
    return " ".join(re.findall(r'"(?:grpcio|protobuf)>=([0-9.]+)', text))
