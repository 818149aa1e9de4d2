"""Nothing of a call outlives its answer, however the call ends."""

import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from batches import file_batch, raw_batch
from gates import Gate, connected, constant, gated_server, until
from servers import ServerProcess, server_of

from protos import dfcvae_pb2 as pb
from protos import open_inference_pb2 as infer

MIB = 2**20
FAILING = 13  # see gated_server.py


SMILE = [pb.Edit(attribute="Smiling", strength=1)]
ONE = raw_batch(constant(1))


def answered(stub: Any, gate: Gate) -> None:
    stub.Encode(pb.EncodeRequest(images=ONE))
    stub.Edit(pb.EditRequest(images=ONE, edits=SMILE, output=pb.ImageOutput(format=pb.IMAGE_FORMAT_PNG)))
    stub.Sample(pb.SampleRequest(count=200))


def refused(stub: Any, gate: Gate) -> None:
    for images in (
        file_batch([b"no image"]),
        file_batch([b"no image", b"nor this"]),
        pb.ImageBatch(),
        pb.ImageBatch(raw=pb.RawImages(count=1)),
    ):
        with pytest.raises(grpc.RpcError):
            stub.Edit(pb.EditRequest(images=images, edits=SMILE))
    with pytest.raises(grpc.RpcError):
        stub.Encode(pb.EncodeRequest(images=ONE, model="Halo"))


def failed(stub: Any, gate: Gate) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub.Encode(pb.EncodeRequest(images=raw_batch(constant(FAILING))))
    assert error.value.code() is grpc.StatusCode.INTERNAL


def cancelled(stub: Any, gate: Gate) -> None:
    gate.close()
    calls = [stub.Encode.future(pb.EncodeRequest(images=ONE)) for _ in range(3)]
    until(lambda: bool(gate.batches()))
    for call in calls:
        call.cancel()
    gate.open()


def expired(stub: Any, gate: Gate) -> None:
    gate.close()
    calls = [stub.Encode.future(pb.EncodeRequest(images=ONE), timeout=0.3) for _ in range(3)]
    for call in calls:
        with pytest.raises(grpc.RpcError):
            call.result()
    gate.open()


def streamed(stub: Any, gate: Gate) -> None:
    steps = [
        (pb.EditStreamRequest(images=ONE), "edited"),
        (pb.EditStreamRequest(edits=SMILE), "edited"),
        (pb.EditStreamRequest(images=file_batch([b"no image"])), "error"),
        (pb.EditStreamRequest(edits=SMILE), "error"),
        (pb.EditStreamRequest(images=raw_batch(constant(FAILING))), "error"),
        (pb.EditStreamRequest(images=ONE, model="Halo"), "error"),
    ]
    turn = threading.Semaphore(1)  # one after the other, or the failing one would share its batch

    def requests() -> Iterator[pb.EditStreamRequest]:
        for request, _ in steps:
            turn.acquire()
            yield request

    for answer, (_, expected) in zip(stub.EditStream(requests()), steps, strict=True):
        assert answer.WhichOneof("outcome") == expected
        turn.release()


def streamed_and_cancelled(stub: Any, gate: Gate) -> None:
    gate.close()
    calls = [
        stub.EditStream(iter([pb.EditStreamRequest(images=ONE), pb.EditStreamRequest(edits=SMILE)])) for _ in range(3)
    ]
    until(lambda: bool(gate.batches()))
    for call in calls:
        call.cancel()
        with suppress(grpc.RpcError):
            list(call)
    gate.open()


def cancelled_before_it_began(stub: Any, gate: Gate) -> None:
    gate.server.process.send_signal(signal.SIGSTOP)
    calls = [stub.EditStream(iter([pb.EditStreamRequest(images=ONE)])) for _ in range(20)]
    time.sleep(0.3)  # they reach the server's socket
    for call in calls:
        call.cancel()
    time.sleep(0.1)
    gate.server.process.send_signal(signal.SIGCONT)
    answered(stub, gate)  # after them


PATHS = [answered, refused, failed, cancelled, expired, streamed, streamed_and_cancelled, cancelled_before_it_began]


def test_no_call_leaves_a_cycle_behind(tiny_bundle: Path, tmp_path: Path) -> None:
    with gated_server(tiny_bundle, tmp_path, "--metrics-port", "0") as gate, connected(gate.server.target) as stub:
        garbage(gate, tmp_path)  # of the start
        left = {path.__name__: after(path, stub, gate, tmp_path) for path in PATHS}
    assert left == {path.__name__: [] for path in PATHS}


def after(path: Callable[[Any, Gate], None], stub: Any, gate: Gate, folder: Path) -> list[str]:
    path(stub, gate)
    until(lambda: gate.server.metric("dfcvae_calls_in_flight") == 0)
    cycles, alive = garbage(gate, folder)
    for _ in range(100):  # a batch that nobody waits for any more may still be computed
        if not alive:
            break
        time.sleep(0.05)
        more, alive = garbage(gate, folder)
        cycles += more
    return cycles + alive


def garbage(gate: Gate, folder: Path) -> tuple[list[str], list[str]]:
    """What is left in cycles, and what is alive."""
    gate.server.process.send_signal(signal.SIGUSR1)
    until((folder / "garbage").exists)
    cycles, alive = (folder / "garbage").read_text().split("\n")
    (folder / "garbage").unlink()
    return cycles.split(), alive.split()


def test_a_request_of_tensors_is_dropped_once_it_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    images = constant(1)
    tensor = infer.ModelInferRequest.InferInputTensor(name="images", datatype="UINT8", shape=images.shape)
    request = infer.ModelInferRequest(model_name="encoder", inputs=[tensor], raw_input_contents=[images.tobytes()])
    with gated_server(tiny_bundle, tmp_path) as gate, grpc.insecure_channel(gate.server.target) as channel:
        method = "/inference.GRPCInferenceService/ModelInfer"
        ask = channel.unary_unary(method, infer.ModelInferRequest.SerializeToString)
        gate.close()
        call = ask.future(request)
        until(lambda: bool(gate.batches()))
        _, alive = garbage(gate, tmp_path)
        gate.open()
        assert call.result()
    assert any(name.endswith(".EncodeRequest") for name in alive), "the request that it became is there"
    assert not [name for name in alive if name.endswith(".ModelInferRequest")]


def test_a_stream_that_falls_silent_holds_no_request_and_no_answer(tiny_bundle: Path, tmp_path: Path) -> None:
    with gated_server(tiny_bundle, tmp_path) as gate, connected(gate.server.target) as stub:
        requests: queue.Queue[pb.EditStreamRequest | None] = queue.Queue()
        stream = stub.EditStream(iter(requests.get, None))
        for images, expected in ((ONE, "edited"), (file_batch([b"no image"]), "error")):
            requests.put(pb.EditStreamRequest(images=images))
            assert next(stream).WhichOneof("outcome") == expected
            # The server hears of it when the answer has left.
            until(lambda: not [name for name in garbage(gate, tmp_path)[1] if "EditStream" in name])
            _, alive = garbage(gate, tmp_path)
            assert any(name.endswith(".CallScope") for name in alive), "the stream is open"
        requests.put(None)


def test_requests_that_are_refused_do_not_stay_in_memory(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path) as server:
        request = pb.EditRequest(images=file_batch([b"x" * 4 * MIB]), edits=SMILE)
        with connected(server.target) as stub:
            sizes = []
            for _ in range(60):
                with pytest.raises(grpc.RpcError) as error:
                    stub.Edit(request)
                assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                sizes.append(resident(server))
    assert max(sizes) - sizes[0] < 80 * MIB, sizes


def resident(server: ServerProcess) -> int:
    """Bytes of memory that a server has."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
    return int(kilobytes) * 1024
