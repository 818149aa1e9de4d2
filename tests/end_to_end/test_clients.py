"""Real clients of a real server, several processes at once; neither side can import torch."""

import io
import json
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image
from servers import END_TO_END, ServerProcess, environment_without_torch, run_python
from tiny_model import (
    ATTRIBUTES,
    IMAGE_SIZE,
    LATENT_DIM,
    MAX_BATCH_SIZE,
    images_of,
    latents_of,
    random_images,
    tiny_directions,
)

from engine.client import Client
from engine.images import prepare

CROP = 12


def photo(seed: int, file_format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def prepared(file: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return prepare(Image.open(io.BytesIO(file)), IMAGE_SIZE, CROP)


def test_several_processes_at_once_get_their_own_images_back(server: ServerProcess, tmp_path: Path) -> None:
    environment = environment_without_torch(tmp_path)
    workers = [
        subprocess.Popen(
            [sys.executable, str(END_TO_END / "client_worker.py"), server.target, str(seed), "25"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    for worker in workers:
        output, errors = worker.communicate()
        assert worker.returncode == 0, errors
        assert output.split() == ["started", "100"]


@pytest.mark.parametrize("count", [1, MAX_BATCH_SIZE, MAX_BATCH_SIZE + 1, 1024])
def test_requests_of_any_size(server: ServerProcess, count: int) -> None:
    images = random_images(count, seed=count)
    with Client(server.target) as client:
        mu, log_var = client.encode(images)
        np.testing.assert_array_equal(mu, latents_of(images))
        np.testing.assert_array_equal(log_var, latents_of(images) / -2)
        np.testing.assert_array_equal(client.decode(mu), images)


def test_edits_are_those_of_the_directions(server: ServerProcess) -> None:
    images, directions = random_images(3, seed=1), tiny_directions()
    own = np.linspace(-4, 4, LATENT_DIM, dtype=np.float32)
    expected = latents_of(images) + 1.5 * directions["Smiling"] - 0.5 * directions["Eyeglasses"] + 2 * own
    edits: list[tuple[str | np.ndarray[tuple[int, ...], np.dtype[np.float32]], float]] = [
        ("Smiling", 1.5),
        ("Eyeglasses", -0.5),
        (own, 2),
    ]
    with Client(server.target) as client:
        np.testing.assert_allclose(client.edit_latents(images, edits), expected, rtol=1e-5)
        np.testing.assert_array_equal(client.edit(latents_of(images), edits), images_of(expected))
        np.testing.assert_array_equal(client.edit(images, {"Smiling": 0}), images)


def test_kept_attributes_are_projected_out(server: ServerProcess) -> None:
    images, directions = random_images(2, seed=2), tiny_directions()
    with Client(server.target) as client:
        moved = client.edit_latents(images, {"Smiling": 3}, keep=["Male", "Eyeglasses", "Male"])
    step = moved - latents_of(images)
    assert np.abs(step).max() > 1
    np.testing.assert_allclose(step @ np.stack([directions["Male"], directions["Eyeglasses"]]).T, 0, atol=0.1)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_files_in_are_prepared_as_in_training(server: ServerProcess, file_format: str) -> None:
    files = [photo(seed, file_format) for seed in range(5)]
    with Client(server.target) as client:
        mu, _ = client.encode(files)
    np.testing.assert_array_equal(mu, latents_of(np.stack([prepared(file) for file in files])))


def test_files_out(server: ServerProcess) -> None:
    images = random_images(5, seed=3)
    with Client(server.target) as client:
        files = client.decode_files(latents_of(images), "PNG")
        np.testing.assert_array_equal([np.asarray(Image.open(io.BytesIO(file))) for file in files], images)
        fine, coarse = (client.edit_files(images, {"Male": 1}, (), "JPEG", quality) for quality in (0, 5))
        assert [Image.open(io.BytesIO(file)).format for file in fine] == ["JPEG"] * 5
        assert sum(map(len, coarse)) < sum(map(len, fine))


def test_the_model_describes_itself(server: ServerProcess) -> None:
    with Client(server.target) as client:
        model = client.model()
    assert (model.image_size, model.latent_dim, model.max_batch_size) == (
        IMAGE_SIZE,
        LATENT_DIM,
        MAX_BATCH_SIZE,
    )
    assert tuple(one.name for one in model.attributes) == ATTRIBUTES
    assert [(one.positives, one.negatives) for one in model.attributes] == [(100, 90), (60, 130), (50, 140)]
    assert (model.backend, model.precision, model.crop, model.resize) == (
        "onnxruntime",
        "fp32",
        CROP,
        "bilinear",
    )
    assert (model.max_images_per_request, model.max_message_bytes) == (1024, 64 * 2**20)
    assert "onnx" in model.versions


def test_health_and_reflection(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "dfcvae.v1.LatentEngine"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            first = next(iter(stub.Watch(health_pb2.HealthCheckRequest(service=name))))
            assert first.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"dfcvae.v1.LatentEngine", "grpc.health.v1.Health"} <= set(services)


def run_client(server: ServerProcess, tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command, *rest = arguments
    return run_python(["-m", "engine.client", command, "--target", server.target, *rest], tmp_path)


def test_the_command_line_edits_encodes_and_decodes(server: ServerProcess, tmp_path: Path) -> None:
    face, edited, latent, back = (str(tmp_path / name) for name in ("face.jpg", "edited.png", "latent.npy", "back.png"))
    Path(face).write_bytes(photo(7, "JPEG"))
    result = run_client(server, tmp_path, "edit", "--set", "Smiling=1.5", "--keep", "Male", face, edited)
    assert result.returncode == 0, result.stderr
    with Client(server.target) as client:
        expected = client.edit([Path(face).read_bytes()], {"Smiling": 1.5}, keep=["Male"])
    np.testing.assert_array_equal(np.asarray(Image.open(edited)), expected[0])
    assert run_client(server, tmp_path, "encode", face, latent).returncode == 0
    assert run_client(server, tmp_path, "decode", latent, back).returncode == 0
    np.testing.assert_array_equal(np.asarray(Image.open(back)), prepared(Path(face).read_bytes()))
    np.save(latent, np.zeros((3, LATENT_DIM), np.float32))
    assert run_client(server, tmp_path, "decode", latent, back).returncode == 0
    assert {path.name for path in tmp_path.glob("back*")} == {"back.png", "back-1.png", "back-2.png"}
    info = run_client(server, tmp_path, "info")
    assert json.loads(info.stdout)["latent_dim"] == LATENT_DIM


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["edit", "--set", "Bald=1", "IN", "OUT"],
            2,
            "NOT_FOUND: unknown attribute 'Bald'; this model has: Smiling",
        ),
        (["edit", "--set", "Smiling", "IN", "OUT"], 2, "--set takes NAME=STRENGTH"),
        (["edit", "IN", "OUT"], 2, "--set"),
        (["edit", "--set", "Smiling=1", "absent.png", "OUT"], 2, "No such file or directory: 'absent.png'"),
        (["edit", "--set", "Smiling=1", "IN", "out.gif"], 2, "out.gif must end in one of .png"),
        (["encode", "IN", "out.png"], 2, "out.png must end in .npy"),
        (["decode", "IN", "OUT"], 2, "is not a .npy file"),
        (["info", "--target", "127.0.0.1:1", "--timeout-s", "5"], 1, "UNAVAILABLE"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(
    server: ServerProcess, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "in.png").write_bytes(photo(8))
    names = {"IN": str(tmp_path / "in.png"), "OUT": str(tmp_path / "out.png")}
    result = run_client(server, tmp_path, *(names.get(argument, argument) for argument in arguments))
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.png").exists()


def test_arguments_that_cannot_be_sent_are_refused_by_the_client(server: ServerProcess) -> None:
    with Client(server.target) as client:
        with pytest.raises(ValueError, match=r"uint8 \[N, S, S, 3\], not int64 \[2, 8\]"):
            client.encode(np.zeros((2, 8), np.int64))
        with pytest.raises(ValueError, match=r"float32 \[N, D\], not float32 \[192\]"):
            client.decode(np.zeros(LATENT_DIM, np.float32))
        with pytest.raises(ValueError, match="sequence of files given as bytes"):
            client.encode(b"a file instead of a list of files")  # type: ignore[arg-type]
