"""The Open Inference Protocol, as clients that others wrote speak it: tritonclient, and KServe's where it is installed.

KServe's client is not among what `make test` installs (it brings 450 MB). Whoever has it in another environment gives
its Python: KSERVE_PYTHON=/path/to/python python -m pytest tests/end_to_end/test_open_inference.py.
"""

import io
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from bundles import smile_more, write_tiny_bundle
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]
from PIL import Image
from servers import ROOT, ServerProcess
from tiny_model import IMAGE_SIZE, LATENT_DIM, images_of, latents_of, random_images, tiny_directions
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from engine.client import Client
from engine.images import encode_file
from engine.latents import Conditions

SMILE, GLASSES, _ = tiny_directions().vectors
PIXELS = [-1, IMAGE_SIZE, IMAGE_SIZE, 3]
TYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64", "uint64": "UINT64", "object": "BYTES"}
FIELDS = {"UINT8": "uint_contents", "FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}
TOKEN = "a-token-of-sixteen-characters"


def tensor(name: str, values: Any, datatype: str = "") -> triton.InferInput:
    array = np.array(values, object) if isinstance(values, list) else values
    made = triton.InferInput(name, list(array.shape), datatype or TYPES[str(array.dtype)])
    made.set_data_from_numpy(array)
    return made


def typed(model: str, **tensors: Any) -> Any:
    """A request with its values in `contents`."""
    request = service_pb2.ModelInferRequest(model_name=model, id="typed")
    for name, values in tensors.items():
        array = np.array(values, object) if isinstance(values, list) else values
        one = request.inputs.add(name=name, datatype=TYPES[str(array.dtype)], shape=array.shape)
        getattr(one.contents, FIELDS[one.datatype]).extend(array.ravel().tolist())
    return request


def strengths(*values: float) -> triton.InferInput:
    return tensor("strengths", np.array(values, np.float32))


def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as refused:
        call()
    return str(refused.value.status()).removeprefix("StatusCode."), str(refused.value.message())


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> Iterator[Any]:
    """Sends messages as they are."""
    with grpc.insecure_channel(server.target) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_the_server_tells_of_itself_and_its_models(client: triton.InferenceServerClient, server: ServerProcess) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert all(client.is_model_ready(name) for name in ("encoder", "decoder", "edit", "sample", "default.edit"))
    assert client.get_server_metadata().name == "dfc-vae"
    with Client(server.target) as own:
        fingerprint = own.model().fingerprint
    told = client.get_model_metadata("encoder")
    assert (told.name, told.platform, list(told.versions)) == ("encoder", "onnxruntime_fp32", [fingerprint])
    found = [(one.name, one.datatype, list(one.shape)) for one in (*told.inputs, *told.outputs)]
    latents = [-1, LATENT_DIM]
    assert found == [("images", "UINT8", PIXELS), ("mu", "FP32", latents), ("log_var", "FP32", latents)]
    edit = client.get_model_metadata("edit", fingerprint)
    assert [one.name for one in edit.inputs] == [
        "images",
        "latents",
        "attributes",
        "strengths",
        "offsets",
        "keep",
        "having",
        "lacking",
    ]
    assert [one.name for one in edit.outputs] == ["images", "latents"]


@pytest.mark.parametrize("count", [1, 40, 1024])
def test_images_to_latents_and_back(client: triton.InferenceServerClient, count: int) -> None:
    images = random_images(count, seed=count)
    encoded = client.infer("encoder", [tensor("images", images)], request_id="mine")
    np.testing.assert_array_equal(encoded.as_numpy("mu"), latents_of(images))
    np.testing.assert_array_equal(encoded.as_numpy("log_var"), latents_of(images) / -2)
    assert encoded.get_response().id == "mine"
    decoded = client.infer("decoder", [tensor("latents", latents_of(images))])
    np.testing.assert_array_equal(decoded.as_numpy("images"), images)


def test_edits_by_name_and_by_offsets(client: triton.InferenceServerClient) -> None:
    images, offsets = random_images(3, seed=1), np.linspace(-9, 9, LATENT_DIM, dtype=np.float32)
    named = [tensor("attributes", ["Smiling", "Eyeglasses"]), strengths(1.5, -0.5)]
    expected = latents_of(images) + 1.5 * SMILE - 0.5 * GLASSES
    for source in (tensor("images", images), tensor("latents", latents_of(images))):
        edited = client.infer("edit", [source, *named])
        np.testing.assert_allclose(edited.as_numpy("latents"), expected, rtol=1e-6)
        np.testing.assert_array_equal(edited.as_numpy("images"), images_of(expected))
    edited = client.infer("edit", [tensor("offsets", offsets), tensor("images", images), *named])
    np.testing.assert_array_equal(edited.as_numpy("images"), images_of(expected + offsets))
    conditions = Conditions.of(tiny_directions(), ["Smiling"], ["Eyeglasses"])
    conditional = [tensor("images", images), tensor("having", ["Smiling"]), tensor("lacking", ["Eyeglasses"])]
    np.testing.assert_array_equal(
        client.infer("edit", conditional).as_numpy("latents"), conditions.project(latents_of(images))
    )
    kept = [tensor("images", images), tensor("attributes", ["Smiling"]), strengths(3), tensor("keep", ["Male"])]
    only = client.infer("edit", kept, outputs=[triton.InferRequestedOutput("latents")])
    assert only.as_numpy("images") is None
    np.testing.assert_allclose((only.as_numpy("latents") - latents_of(images)) @ tiny_directions()["Male"], 0, atol=0.1)


def test_files_go_in_and_come_out(client: triton.InferenceServerClient, server: ServerProcess) -> None:
    files = [
        encode_file(np.random.default_rng(seed).integers(0, 256, (16, 14, 3), np.uint8), "PNG") for seed in range(3)
    ]
    given = [tensor("images", files), tensor("attributes", ["Smiling"]), strengths(1)]
    wanted = [triton.InferRequestedOutput("images")]
    answer = client.infer("edit", given, outputs=wanted, parameters={"format": "png"})
    with Client(server.target) as own:
        expected = own.edit_files(files, {"Smiling": 1.0}, file_format="PNG")
        assert answer.as_numpy("images").tolist() == expected
        answer = client.infer("edit", given, outputs=wanted, parameters={"format": "JPEG", "quality": 30})
        assert answer.as_numpy("images").tolist() == own.edit_files(
            files, {"Smiling": 1.0}, file_format="JPEG", quality=30
        )


def test_samples_are_those_of_the_same_seed(client: triton.InferenceServerClient, server: ServerProcess) -> None:
    with Client(server.target) as own:
        expected = own.sample_latents(5, seed=7, temperature=0.5, distribution="standard")
    parameters = {"count": 5, "seed": 7, "temperature": 0.5, "distribution": "standard"}
    drawn = client.infer("sample", [], parameters=parameters)
    np.testing.assert_array_equal(drawn.as_numpy("latents"), expected)
    np.testing.assert_array_equal(drawn.as_numpy("images"), images_of(expected))
    inputs = [
        tensor("count", np.array([5])),
        tensor("seed", np.array([7], np.uint64)),
        tensor("temperature", np.array([0.5], np.float32)),
        tensor("distribution", ["standard"]),
    ]
    np.testing.assert_array_equal(client.infer("sample", inputs).as_numpy("latents"), expected)
    conditional = [tensor("having", ["Smiling", "Male"]), tensor("lacking", ["Eyeglasses"])]
    with Client(server.target) as own:
        expected = own.sample_latents(5, seed=7, having=["Smiling", "Male"], lacking=["Eyeglasses"])
    drawn = client.infer("sample", conditional, parameters={"count": 5, "seed": 7})
    np.testing.assert_array_equal(drawn.as_numpy("latents"), expected)


def test_calls_under_way_at_once(client: triton.InferenceServerClient) -> None:
    answers: Queue[Any] = Queue()
    for seed in range(50):
        client.async_infer(
            "encoder",
            [tensor("images", random_images(1 + seed % 5, seed))],
            lambda result, error: answers.put((result, error)),
            request_id=str(seed),
            priority=1 + seed % 3,
        )
    for _ in range(50):
        result, error = answers.get(timeout=60)
        assert error is None
        seed = int(result.get_response().id)
        np.testing.assert_array_equal(result.as_numpy("mu"), latents_of(random_images(1 + seed % 5, seed)))


def test_typed_contents_are_answered_in_kind(stub: Any) -> None:
    images = random_images(20, seed=2)
    answer = stub.ModelInfer(typed("encoder", images=images), timeout=30)
    assert not answer.raw_output_contents
    mu, log_var = answer.outputs
    assert (mu.name, mu.datatype, list(mu.shape), answer.id) == ("mu", "FP32", [20, LATENT_DIM], "typed")
    np.testing.assert_array_equal(mu.contents.fp32_contents, latents_of(images).ravel())
    np.testing.assert_array_equal(log_var.contents.fp32_contents, latents_of(images).ravel() / -2)
    request = typed("edit", latents=latents_of(images), attributes=[b"Smiling"], strengths=np.array([2], np.float32))
    request.outputs.add(name="images")
    (edited,) = stub.ModelInfer(request, timeout=30).outputs
    assert list(edited.contents.uint_contents) == images_of(latents_of(images) + 2 * SMILE).ravel().tolist()
    request = typed(
        "edit", images=[encode_file(images[0], "PNG")], attributes=[b"Smiling"], strengths=np.array([0], np.float32)
    )
    request.parameters["format"].string_param = "PNG"
    (files, _) = stub.ModelInfer(request, timeout=30).outputs
    shown = np.asarray(Image.open(io.BytesIO(files.contents.bytes_contents[0])))
    np.testing.assert_array_equal(shown, images[0])


def edit(*inputs: triton.InferInput, model: str = "edit", **options: Any) -> Any:
    return lambda client: client.infer(model, list(inputs), **options)


def encode(*inputs: triton.InferInput, **options: Any) -> Any:
    return edit(*inputs, model="encoder", **options)


def sample(*inputs: triton.InferInput, **parameters: Any) -> Any:
    return edit(*inputs, model="sample", parameters=parameters)


def images_like(values: Any) -> triton.InferInput:
    return tensor("images", values)


ONE = random_images(1, seed=0)
IMAGE, NOT_A_NUMBER = images_like(ONE), np.full((1, LATENT_DIM), np.nan, np.float32)
NAMED = (tensor("attributes", ["Smiling"]), strengths(1))
EDIT = (IMAGE, *NAMED)
NOT_FOUND = {
    "no model 'nope' is served here; there is: encoder, decoder, edit, sample": edit(model="nope"),
    "no model 'other.encoder'": edit(IMAGE, model="other.encoder"),
    "not '3'; ask for that, or for none": encode(IMAGE, model_version="3"),
    "unknown attribute 'Bald'": edit(IMAGE, tensor("attributes", ["Bald"]), strengths(1)),
    "unknown attribute 'latents.data'": edit(IMAGE, tensor("attributes", ["latents.data"]), strengths(1)),
}
INVALID = {
    "input images is missing": encode(),
    "no input 'pictures'; it takes: images": encode(tensor("pictures", ONE)),
    "images is there twice": encode(IMAGE, IMAGE),
    "has the shape [1, 7, 8, 3]; UINT8 must be [-1, 8, 8, 3]": encode(images_like(ONE[:, :7])),
    "has the shape [8, 8, 3]": encode(images_like(ONE[0])),
    "is of datatype 'FP32'; it must be UINT8 or BYTES": encode(images_like(latents_of(ONE))),
    "images: 0 images or latents; send at least one": encode(images_like(ONE[:0])),
    "at most 1024": encode(images_like(random_images(1025, 0))),
    "images[0] is not a JPEG": encode(images_like([b"no picture"])),
    "NaN": edit(tensor("latents", NOT_A_NUMBER), model="decoder"),
    "latents: latent 0 has values that are NaN": edit(tensor("latents", NOT_A_NUMBER), *NAMED),
    "send attributes with their strengths, offsets, having or lacking": edit(IMAGE),
    "strengths[0] is nan": edit(IMAGE, NAMED[0], strengths(np.nan)),
    "offsets has values that are NaN": edit(*EDIT, tensor("offsets", NOT_A_NUMBER[0])),
    "quality is 101; it goes": edit(*EDIT, parameters={"format": "jpeg", "quality": 101}),
    "format or quality is set, but only": edit(
        *EDIT, parameters={"format": "jpeg"}, outputs=[triton.InferRequestedOutput("latents")]
    ),
    "send either images or latents": edit(*NAMED),
    "attributes has 1 names, and strengths 0 values": edit(IMAGE, NAMED[0]),
    "not UTF-8": edit(IMAGE, tensor("attributes", [b"\xff"]), strengths(1)),
    "parameter 'strength' is not known": edit(*EDIT, parameters={"strength": 1.0}),
    "format is 'gif'; it must be one of raw, jpeg": edit(*EDIT, parameters={"format": "gif"}),
    "quality is 'high'": edit(*EDIT, parameters={"quality": "high"}),
    "priority is 9; it goes from 1": edit(*EDIT, priority=9),
    "no output 'mu'; it gives: images, latents": edit(*EDIT, outputs=[triton.InferRequestedOutput("mu")]),
    "asks for classification": edit(*EDIT, outputs=[triton.InferRequestedOutput("images", class_count=3)]),
    "count: 0 images or latents; ask for at least one": sample(),
    "count is -1": sample(count=-1),
    "count is 'two'": sample(count="two"),
    "temperature is 11": sample(count=2, temperature=11.0),
    "distribution is 'odd'": sample(count=2, distribution="odd"),
    "count is 4294967296, which is no number": sample(tensor("count", np.array([2**32]))),
    "has the shape [2]; INT64 must be [1]": sample(tensor("count", np.array([2, 2]))),
    "'count' is there as an input": sample(tensor("count", np.array([2])), count=2),
}


@pytest.mark.parametrize("sentence", [*NOT_FOUND, *INVALID])
def test_mistakes_are_told(client: triton.InferenceServerClient, sentence: str) -> None:
    code, said = refusal(lambda: {**NOT_FOUND, **INVALID}[sentence](client))
    assert code == ("NOT_FOUND" if sentence in NOT_FOUND else "INVALID_ARGUMENT")
    assert sentence in said
    assert "any number" not in said or "[-1" in said
    assert not re.search(r"edits|\boutput\.|\.(files|raw|count)\b", said)  # fields of other requests


def raw_request(*contents: bytes, datatype: str = "UINT8", shape: tuple[int, ...] = (1, 8, 8, 3)) -> Any:
    request = service_pb2.ModelInferRequest(model_name="encoder", raw_input_contents=contents)
    request.inputs.add(name="images", datatype=datatype, shape=shape)
    return request


def with_contents(request: Any) -> Any:
    request.inputs[0].contents.uint_contents.append(1)
    return request


def in_shared_memory() -> Any:
    request = raw_request(bytes(192))
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


WRONG = {
    "has 191 bytes of raw_input_contents; UINT8 [1, 8, 8, 3] has 192": raw_request(bytes(191)),
    "raw_input_contents has 2 entries for 1 inputs": raw_request(bytes(192), bytes(192)),
    "has 0 values in contents.uint_contents; its shape has 192": raw_request(),
    "has contents beside raw_input_contents": with_contents(raw_request(bytes(192))),
    "asks for shared_memory_region": in_shared_memory(),
    "has the shape [-1, 8, 8, 3]": raw_request(bytes(192), shape=(-1, 8, 8, 3)),
    "are not 1 values of BYTES": raw_request(b"\x05\0\0\0four", datatype="BYTES", shape=(1,)),
    "are not 2 values of BYTES": raw_request(b"\x04\0\0\0four", datatype="BYTES", shape=(2,)),
    "has 100000 values; at most 16384": raw_request(bytes(400_000), datatype="BYTES", shape=(100_000,)),
    "is of datatype 'INT64'": typed("encoder", images=ONE.astype(np.int64)),
    "has 288000 values in contents.uint_contents, where at most": typed("encoder", images=random_images(1500, 0)),
    "in uint_contents; send them as raw_input_contents": typed("encoder", images=random_images(4000, 0)),
    "the answer would have 384000 values": typed("sample", count=np.array([1000])),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_requests_that_tritonclient_never_sends_are_refused(stub: Any, sentence: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(WRONG[sentence], timeout=30)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in refused.value.details()


def test_a_value_beyond_a_byte_is_refused(stub: Any) -> None:
    request = typed("encoder", images=ONE)
    request.inputs[0].contents.uint_contents[5] = 256
    with pytest.raises(grpc.RpcError, match="has the value 256; UINT8 goes up to 255"):
        stub.ModelInfer(request, timeout=30)


@pytest.fixture(scope="module")
def guarded(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two bundles behind tokens and a rate."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text(f"anna {TOKEN}\n")
    smile_more(other := write_tiny_bundle(folder / "bundle"), 3)
    command = ["-m", "engine", "--bundle", f"one={tiny_bundle}", "--bundle", f"two={other}", "--metrics-port", "0"]
    limits = ["--tokens", str(folder / "tokens"), "--max-images-per-second", "0.01", "--burst", "20"]
    with ServerProcess([*command, *limits], folder) as server:
        yield server


def test_tokens_rates_models_and_figures_are_those_of_every_rpc(guarded: ServerProcess) -> None:
    own = {"authorization": f"Bearer {TOKEN}"}
    images = random_images(4, seed=3)
    smile = [tensor("images", images), *NAMED]
    with triton.InferenceServerClient(guarded.target) as client:
        for call in (client.is_server_live, client.is_server_ready, lambda: client.infer("edit", smile)):
            assert refusal(call)[0] == "UNAUTHENTICATED"
        versions = []
        for name, factor in (("edit", 1), ("one.edit", 1), ("two.edit", 3)):
            answer = client.infer(name, smile, headers=own)
            np.testing.assert_array_equal(answer.as_numpy("images"), images_of(latents_of(images) + factor * SMILE))
            assert client.is_model_ready(name, answer.get_response().model_version, headers=own)
            versions.append(answer.get_response().model_version)
        assert versions[0] == versions[1] != versions[2]
        code, said = refusal(lambda: client.infer("two.edit", smile, model_version=versions[0], headers=own))
        assert code == "NOT_FOUND"
        assert versions[2] in said
        assert "two.sample" in refusal(lambda: client.infer("three.edit", smile, headers=own))[1]
    # 12 images are spent, and 8 are left.
    with grpc.insecure_channel(guarded.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="sample")
        request.parameters["count"].int64_param = 9
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request, metadata=list(own.items()), timeout=30)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    details = rpc_status.from_call(refused.value).details
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
    assert guarded.metric("dfcvae_images_total", method="ModelInfer") == 12
    assert guarded.metric("dfcvae_requests_total", method="ModelInfer", code="OK") == 3
    assert guarded.metric("dfcvae_requests_total", method="ModelInfer", code="RESOURCE_EXHAUSTED") == 1
    assert guarded.metric("dfcvae_batch_images_sum", model="two", graph="edit") == 4


def test_the_example_of_the_documentation(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    (example,) = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "tritonclient" in one]
    monkeypatch.chdir(tmp_path)
    face = random_images(1, seed=5)
    Path("face.jpg").write_bytes(encode_file(face[0], "PNG"))
    found: dict[str, Any] = {}
    exec(example.replace("localhost:50051", server.target), found)
    np.testing.assert_array_equal(found["images"], images_of(latents_of(face) + 1.5 * SMILE - 1.5 * GLASSES))


KSERVE = """
import asyncio, sys
import grpc, numpy as np
from kserve import InferInput, InferRequest, InferenceGRPCClient

async def main():
    client = InferenceGRPCClient(sys.argv[1])
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("edit")
    images = np.load(sys.argv[2])
    def request(binary):
        given = []
        for name, values, datatype in (
            ("images", images, "UINT8"), ("attributes", np.array(["Smiling"], object), "BYTES"),
            ("strengths", np.array([2], np.float32), "FP32"),
        ):
            data = values if binary else values.ravel().tolist()
            given.append(InferInput(name, list(values.shape), datatype, data))
        return InferRequest("edit", given)
    answers = [await client.infer(request(binary)) for binary in (True, False)]
    raw, typed = ({one.name: one.as_numpy() for one in answer.outputs} for answer in answers)
    assert all((raw[name] == typed[name]).all() for name in ("images", "latents"))
    try:
        await client.infer(InferRequest("edit", []))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    else:
        raise AssertionError("answered")
    drawn = await client.infer(InferRequest("sample", [], parameters={"count": 2, "seed": 1}))
    assert [one.shape[0] for one in drawn.outputs] == [2, 2]
    np.save(sys.argv[2], raw["images"])
    await client.close()

asyncio.run(main())
"""


@pytest.mark.skipif("KSERVE_PYTHON" not in os.environ, reason="needs KServe's own client, see above")
def test_kserve_s_client_edits(server: ServerProcess, tmp_path: Path) -> None:
    images, file = random_images(5, seed=4), tmp_path / "images.npy"
    np.save(file, images)
    subprocess.run([os.environ["KSERVE_PYTHON"], "-c", KSERVE, server.target, str(file)], check=True)
    np.testing.assert_array_equal(np.load(file), images_of(latents_of(images) + 2 * SMILE))
