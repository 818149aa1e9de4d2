"""What programs can read of a refusal, and the ids that calls go by."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from batches import raw_batch
from gates import connected, constant, gated_server, until
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]
from servers import ServerProcess, server_of
from serving.requests import stub_of

from engine.client import Client
from protos import dfcvae_pb2 as pb


@pytest.fixture(scope="module")
def logged(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that logs every call, as JSON."""
    options = ("--log-level", "debug", "--log-format", "json")
    with server_of(tiny_bundle, tmp_path_factory.mktemp("logged"), *options) as process:
        yield process


@pytest.fixture(scope="module")
def stub(logged: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(logged.target) as channel:
        yield stub_of(channel)


def refusal_of(call: Any, request: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refusal:
        call(request, timeout=30, **options)
    return refusal.value


def details_of(error: grpc.RpcError) -> dict[str, Any]:
    """The details of an error, by the names of their types."""
    found = {}
    for entry in rpc_status.from_call(error).details:
        detail = getattr(error_details_pb2, entry.TypeName().rpartition(".")[2])()
        entry.Unpack(detail)
        found[type(detail).__name__] = detail
    return found


def edit(attribute: str = "Smiling", **fields: Any) -> pb.EditRequest:
    latents = pb.LatentBatch(count=1, dim=192, data=bytes(768))
    return pb.EditRequest(latents=latents, edits=[pb.Edit(attribute=attribute, strength=1)], **fields)


NAN = pb.Edit(attribute="Smiling", strength=float("nan"))
FIELDS = {
    "edits": pb.EditRequest(latents=edit().latents),
    "edits[1]": pb.EditRequest(latents=edit().latents, edits=[edit().edits[0], NAN]),
    "edits[0]": edit("Bald"),
    "output.quality": edit(output=pb.ImageOutput(format=pb.IMAGE_FORMAT_JPEG, quality=101)),
    "latents.data": pb.EditRequest(latents=pb.LatentBatch(count=2, dim=192, data=bytes(768)), edits=edit().edits),
    "model": edit(model="other"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_refusal_names_the_field(stub: Any, field: str) -> None:
    error = refusal_of(stub.Edit, FIELDS[field])
    details = details_of(error)
    (violation,) = details["BadRequest"].field_violations
    assert violation.field == field or violation.field.startswith(f"{field}.")
    assert violation.description == error.details()
    reasons = {"edits[0]": "UNKNOWN_ATTRIBUTE", "model": "UNKNOWN_MODEL"}
    assert details["ErrorInfo"].reason == reasons.get(field, "INVALID_REQUEST")
    assert details["ErrorInfo"].domain == "dfcvae.v1"
    assert "RetryInfo" not in details


def test_a_full_queue_says_when_to_try_again(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        gated_server(tiny_bundle, tmp_path, "--max-queue", "20") as gate,
        ThreadPoolExecutor(2) as pool,
        Client(gate.server.target, timeout=60) as client,
        connected(gate.server.target) as stub,
    ):
        request = pb.EncodeRequest(images=raw_batch(constant(1, 20)))
        gate.close()
        running = pool.submit(client.encode, constant(1))
        until(lambda: gate.batches() == ["encode 1"])
        # Whichever of the two comes first fills the queue.
        two = [stub.Encode.future(request, timeout=60) for _ in range(2)]
        until(lambda: any(call.done() for call in two))
        refused, accepted = sorted(two, key=lambda call: not call.done())
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        details = details_of(refused)
        assert details["ErrorInfo"].reason == "OVERLOADED"
        assert 0 < details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() < 60
        gate.open()
        assert accepted.result().mu.count == 20
        running.result()


@pytest.mark.parametrize("name", ["x" * 100_000, "ü" * 50_000, "\n\x00\u2028" * 3000], ids=["x", "ü", "controls"])
def test_a_long_name_comes_back_shortened(stub: Any, name: str) -> None:
    error = refusal_of(stub.Edit, edit(name))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("unknown attribute '")
    assert error.details().endswith("Smiling, Eyeglasses, Male")
    assert len(error.details()) <= 1005
    assert details_of(error)["BadRequest"].field_violations[0].field.startswith("edits[0]")


def ids_of(call: Any) -> list[str]:
    return [value for key, value in call.trailing_metadata() if key == "x-request-id"]


def test_a_call_keeps_the_id_that_it_came_with(logged: ServerProcess, stub: Any) -> None:
    metadata = [("x-request-id", "order-66/a")]
    _, call = stub.GetModel.with_call(pb.GetModelRequest(), metadata=metadata, timeout=30)
    assert ids_of(call) == ["order-66/a"]
    error = refusal_of(stub.Edit, edit("Bald"), metadata=metadata)
    assert ids_of(error) == ["order-66/a"]
    assert details_of(error)["RequestInfo"].request_id == "order-66/a"
    log = logged.wait_for_log('"request_id": "order-66/a"', 2)
    entries = [json.loads(line) for line in log.splitlines() if "order-66/a" in line]
    assert [(entry["method"], entry["code"], entry["level"]) for entry in entries] == [
        ("GetModel", "OK", "debug"),
        ("Edit", "NOT_FOUND", "info"),
    ]
    assert all(entry["client"] == "127.0.0.1" and entry["milliseconds"] > 0 for entry in entries)
    assert entries[1]["error"].startswith("unknown attribute 'Bald'")


@pytest.mark.parametrize("given", ["", "two words", 'a"b', "x" * 129])
def test_a_call_without_a_sane_id_gets_one_of_its_own(stub: Any, given: str) -> None:
    calls = [
        stub.GetModel.with_call(pb.GetModelRequest(), metadata=[("x-request-id", given)], timeout=30)[1]
        for _ in range(2)
    ]
    (first,), (second,) = map(ids_of, calls)
    assert first != second
    assert given not in (first, second)
    assert len(first) > 10


def test_streams_have_ids_too(stub: Any) -> None:
    requests = [pb.EditStreamRequest(latents=edit().latents, edits=edit().edits)] * 3
    call = stub.EditStream(iter(requests), metadata=[("x-request-id", "stream-1")], timeout=30)
    assert len(list(call)) == 3
    assert ids_of(call) == ["stream-1"]


def test_a_stream_of_what_is_no_message_is_told_so(logged: ServerProcess) -> None:
    with grpc.insecure_channel(logged.target) as channel:
        call = channel.stream_stream("/dfcvae.v1.LatentEngine/EditStream")(iter([b"\xff\xff\xff"]), timeout=30)
        with pytest.raises(grpc.RpcError) as refusal:
            list(call)
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "use the service's own .proto" in refusal.value.details()
    assert "Traceback" not in logged.log
