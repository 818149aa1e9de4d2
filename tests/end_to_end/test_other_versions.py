"""Server and client on other versions than those of the lock: the oldest gRPC and protobuf, other Pythons."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from environments import environment_with_oldest, needs_oldest, other_python
from servers import ROOT, environment_without_torch, server_of
from tiny_model import random_images

from engine.client import Client

_CLIENT = """
import asyncio
import platform
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


print(platform.python_version())
print(grpc.__version__, google.protobuf.__version__)
with Client(target) as client:
    edited = client.edit(images, {"Smiling": 1.5})
assert (asyncio.run(edit_again()) == edited).all()
np.save(edited_file, edited)
"""


@needs_oldest
def test_the_oldest_grpc_serves_an_edit_and_asks_for_one(tiny_bundle: Path, tmp_path: Path) -> None:
    environment = environment_with_oldest(environment_without_torch(tmp_path / "site"))
    said = serve_and_edit(tiny_bundle, tmp_path, sys.executable, environment)
    text = (ROOT / "pyproject.toml").read_text()
    least = " ".join(re.findall(r'"(?:grpcio|protobuf)>=([0-9.]+)', text))
    assert said == [platform.python_version(), least, "NOT_FOUND edits[0]"]


@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_another_python_serves_an_edit_and_asks_for_one(version: str, tiny_bundle: Path, tmp_path: Path) -> None:
    python = other_python(version)
    found, _, refusal = serve_and_edit(tiny_bundle, tmp_path, python, environment_without_torch(tmp_path / "site"))
    assert found.startswith(f"{version}.")
    assert refusal == "NOT_FOUND edits[0]"


def serve_and_edit(bundle: Path, folder: Path, python: str, environment: dict[str, str]) -> list[str]:
    """Has one environment serve, and both this one and that one ask it; what the client there said."""
    images, image_file, edited_file = random_images(3, seed=0), folder / "images.npy", folder / "edited.npy"
    np.save(image_file, images)
    with server_of(bundle, folder, variables=environment, python=python) as server:
        result = subprocess.run(
            [python, "-c", _CLIENT, server.target, str(image_file), str(edited_file)],
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
    np.testing.assert_array_equal(np.load(edited_file), expected)
    return result.stdout.splitlines()
