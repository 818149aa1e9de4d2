"""Real clients of a real server, several processes at once; neither side can import torch."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import write_tiny_bundle
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image
from servers import ServerProcess, client_workers, server_of
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

from engine.client import Client, ClientError
from engine.images import encode_file
from framing import Frame, prepare

CROP = 12
CROPS = {"first": CROP, "second": None}


def photo(seed: int, file_format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 14, 3), dtype=np.uint8)
    return encode_file(pixels, file_format)


def prepared(file: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return prepare(Image.open(io.BytesIO(file)), Frame(IMAGE_SIZE, CROP))


def test_several_processes_at_once_get_their_own_images_back(server: ServerProcess, tmp_path: Path) -> None:
    for worker in client_workers(server.target, tmp_path, number=4, rounds=25):
        answers, errors = worker.communicate()
        assert worker.returncode == 0, errors
        assert answers == "100\n"


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
    assert (model.image_size, model.latent_dim, model.max_batch_size) == (IMAGE_SIZE, LATENT_DIM, MAX_BATCH_SIZE)
    assert tuple(one.name for one in model.attributes) == ATTRIBUTES
    assert [(one.positives, one.negatives) for one in model.attributes] == [(100, 90), (60, 130), (50, 140)]
    assert [one.kind for one in model.attributes] == ["mean", "adjusted", "svm"]
    assert all(one.can_condition for one in model.attributes)
    assert (model.backend, model.precision, model.crop, model.resize) == ("onnxruntime", "fp32", CROP, "bilinear")
    assert (model.max_images_per_request, model.max_message_bytes) == (1024, 16 * 2**20)
    assert "onnx" in model.versions


def test_a_client_and_a_call_choose_their_model(tiny_bundle: Path, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other", crop=None)
    with (
        server_of(f"first={tiny_bundle}", tmp_path, "--bundle", f"second={other}") as server,
        Client(server.target, model="second") as client,
    ):
        chosen, named = client.model(), client.model(model="first")
        assert (chosen.name, chosen.crop, chosen.models) == ("second", None, ("first", "second"))
        assert (named.name, named.crop, named.models) == ("first", CROP, ("first", "second"))
        assert client.model(model="") == named
        photos = [photo(1)]
        picture = Image.open(io.BytesIO(photos[0]))
        expected = {name: prepare(picture, Frame(IMAGE_SIZE, crop)) for name, crop in CROPS.items()}
        np.testing.assert_array_equal(client.edit(photos, {"Male": 0})[0], expected["second"])
        np.testing.assert_array_equal(client.edit(photos, {"Male": 0}, model="first")[0], expected["first"])
        with client.stream() as slider:
            np.testing.assert_array_equal(slider.edit(photos, [])[0], expected["second"])
        with pytest.raises(ClientError, match="NOT_FOUND") as unknown:
            client.sample(1, model="third")
        assert [one.field for one in unknown.value.violations] == ["model"]


def test_pixels_are_read_only_and_latents_are_the_callers(server: ServerProcess) -> None:
    with Client(server.target) as client:
        images, latents = client.edit_both(random_images(2, seed=4), {"Male": 1})
        posterior = client.encode(images)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
    assert all(own.flags.writeable and own.dtype == np.float32 for own in (latents, *posterior))


def test_threads_share_a_client(server: ServerProcess) -> None:
    with Client(server.target) as client, ThreadPoolExecutor(16) as pool:

        def check(seed: int) -> None:
            images = random_images(1 + seed % 7, seed)
            np.testing.assert_array_equal(client.edit(images, {"Smiling": 0}), images)
            np.testing.assert_array_equal(client.encode(images).mu, latents_of(images))

        list(pool.map(check, range(200)))


def test_reflection_of_version_1_tells_of_everything(server: ServerProcess) -> None:
    """Its messages are those of v1alpha."""
    request = reflection_pb2.ServerReflectionRequest
    files: set[str] = set()
    with grpc.insecure_channel(server.target) as channel:
        ask = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = ask(iter([request(list_services="")]), timeout=30)
        names = [service.name for service in answer.list_services_response.service]
        for answer in ask(iter(request(file_containing_symbol=name) for name in names), timeout=30):
            for data in answer.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(data)
                files.update(f"{file.package}.{service.name}" for service in file.service)
    assert set(names) == files
    assert set(names) == {
        "dfcvae.v1.LatentEngine",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize("name", ["dfcvae.v1.LatentEngine.Edit", "google.rpc.BadRequest"])
def test_reflection_knows_methods_and_the_details_of_refusals(server: ServerProcess, name: str) -> None:
    request = reflection_pb2.ServerReflectionRequest
    with grpc.insecure_channel(server.target) as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        asked = (name, f"{name}er", "Edit")
        found, *unknown = ask(iter(request(file_containing_symbol=one) for one in asked), timeout=30)
    files = map(descriptor_pb2.FileDescriptorProto.FromString, found.file_descriptor_response.file_descriptor_proto)
    assert any(name.startswith(file.package) for file in files)
    assert [answer.error_response.error_code for answer in unknown] == [grpc.StatusCode.NOT_FOUND.value[0]] * 2
