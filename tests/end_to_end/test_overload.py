"""What a real server refuses, drops or leaves unread when there is too much of it; the tests hold up its compute."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from batches import latent_batch, raw_batch
from gates import connected, constant, gated_server, list_of, until
from servers import server_of
from tiny_model import IMAGE_SIZE, latents_of

from engine.client import Client, ClientError
from protos import dfcvae_pb2 as pb


def test_a_full_queue_refuses_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        gated_server(tiny_bundle, tmp_path, "--max-queue", "20") as gate,
        ThreadPoolExecutor(3) as pool,
        Client(gate.server.target) as client,
    ):
        gate.close()
        running = pool.submit(client.encode, constant(1))
        until(lambda: gate.batches() == ["encode 1"])
        # The queue has room for one of the two, whichever comes first; the other is refused at once.
        two = [pool.submit(client.encode, constant(value, 15)) for value in (2, 3)]
        until(lambda: any(call.done() for call in two))
        refused, accepted = sorted(two, key=lambda call: not call.done())
        error = refused.exception()
        assert isinstance(error, ClientError)
        assert error.status == "RESOURCE_EXHAUSTED"
        assert "the queue holds 15 of at most 20 images, 15 more don't fit; send again" in error.message
        with pytest.raises(ClientError, match="at most 20"):
            client.encode(constant(4, 21))
        gate.open()
        assert len(accepted.result().mu) == 15
        assert len(running.result().mu) == 1
        assert len(client.encode(constant(5, 20)).mu) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_what_computes_gives_way_to_what_takes_calls(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path) as server:
        with Client(server.target) as client:
            client.encode(constant(1))
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        threads = Path(f"/proc/{server.process.pid}/task").iterdir()
        niceness = [os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in threads]
        assert os.getpriority(os.PRIO_PROCESS, server.process.pid) == usual  # the main thread, and so the event loop
        assert set(niceness) == {usual, min(usual + 10, 19)}
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # otherwise the server leaves it as it is
            assert os.sched_getscheduler(server.process.pid) == os.SCHED_BATCH


def test_who_sends_on_into_a_full_queue_is_refused_unread(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        gated_server(tiny_bundle, tmp_path, "--max-queue", "20", "--metrics-port", "0") as gate,
        connected(gate.server.target) as stub,
    ):

        def encode(count: int) -> Any:
            return stub.Encode.future(pb.EncodeRequest(images=raw_batch(constant(1, count))))

        def received() -> float:
            return gate.server.metric("dfcvae_received_messages_total", method="Encode")

        gate.close()
        running = encode(1)
        until(lambda: gate.batches() == ["encode 1"])
        waiting = encode(20)
        until(lambda: received() == 2)
        assert "the queue holds 20 of at most 20 images, 2 more don't fit" in encode(2).exception(30).details()
        assert received() == 3
        for _ in range(5):
            assert "the queue holds 20 of at most 20 images, 1 more don't fit" in encode(2).exception(30).details()
        assert received() == 3
        assert stub.GetModel(pb.GetModelRequest(), timeout=30).image_size == IMAGE_SIZE
        gate.open()
        assert [call.result(30).mu.count for call in (running, waiting)] == [1, 20]
        assert encode(2).result(30).mu.count == 2


@pytest.mark.parametrize(
    ("options", "calls", "message"),
    [
        (["--max-calls-in-flight", "1"], 1, "the server is answering 1 calls, at most 1, "),
        (["--max-message-bytes", "200000", "--max-bytes-in-flight", "230000"], 3, "requests, at most 172500, "),
    ],
)
def test_what_is_held_at_once_is_limited(
    tiny_bundle: Path, tmp_path: Path, options: list[str], calls: int, message: str
) -> None:
    with (
        gated_server(tiny_bundle, tmp_path, "--metrics-port", "0", *options) as gate,
        ThreadPoolExecutor(calls) as pool,
        Client(gate.server.target) as client,
        connected(gate.server.target) as stub,
    ):
        gate.close()
        latents = latents_of(constant(1, 60))
        batch = latent_batch(latents)
        running = []
        for number in range(1, calls + 1):
            running.append(pool.submit(client.decode, latents))
            held = number * 46_080
            until(lambda held=held: held <= gate.server.metric("dfcvae_bytes_in_flight") < held + 1000)  # type: ignore[misc]
        with pytest.raises(grpc.RpcError) as refusal:
            stub.Decode(pb.DecodeRequest(latents=batch), timeout=30)
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert message in refusal.value.details()
        gate.open()
        assert [len(call.result()) for call in running] == [60] * calls
        until(lambda: gate.server.metric("dfcvae_calls_in_flight") == 0)
        assert stub.Decode(pb.DecodeRequest(latents=batch), timeout=30).images.raw.count == 60


def test_streams_are_not_read_while_too_much_is_held(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--max-message-bytes", "200000", "--max-bytes-in-flight", "1000000", "--metrics-port", "0"]
    with gated_server(tiny_bundle, tmp_path, *options) as gate, connected(gate.server.target) as stub:

        def received() -> float:
            return gate.server.metric("dfcvae_received_messages_total", method="EditStream")

        images = raw_batch(constant(1, 70))
        begin = threading.Event()

        def requests() -> Iterator[pb.EditStreamRequest]:
            begin.wait()
            yield from (pb.EditStreamRequest(images=images, id=value) for value in range(40))

        gate.close()
        streams = [stub.EditStream(requests()) for _ in range(3)]
        until(lambda: gate.server.metric("dfcvae_calls_in_flight") == 3)
        begin.set()
        until(lambda: received() >= 3)
        # Every stream may have one message of 13,440 bytes, and no more are read beyond 7/8 of 750,000 bytes.
        time.sleep(0.3)
        assert received() <= 52
        assert gate.server.metric("dfcvae_bytes_in_flight") < 1_000_000 + 3 * 80_000
        gate.open()
        assert [list_of(stream) for stream in streams] == [(list(range(40)), grpc.StatusCode.OK)] * 3
        until(lambda: gate.server.metric("dfcvae_bytes_in_flight") == 0)


@pytest.mark.parametrize("way", ["deadline", "cancel"])
def test_what_nobody_waits_for_is_not_computed(tiny_bundle: Path, tmp_path: Path, way: str) -> None:
    with (
        gated_server(tiny_bundle, tmp_path, "--max-queue", "20") as gate,
        ThreadPoolExecutor(1) as pool,
        connected(gate.server.target) as stub,
        Client(gate.server.target) as client,
    ):
        gate.close()
        running = pool.submit(client.encode, constant(1))
        until(lambda: gate.batches() == ["encode 1"])
        request = pb.EncodeRequest(images=raw_batch(constant(77, 20)))
        if way == "deadline":
            with pytest.raises(grpc.RpcError) as late:
                stub.Encode(request, timeout=1)
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        else:
            call = stub.Encode.future(request)
            # It fills the queue, so when a try is refused it has arrived; unless a try came first and it was.
            while _status_of_a_try(gate.server.target) != "RESOURCE_EXHAUSTED":
                if call.done():
                    call = stub.Encode.future(request)
            call.cancel()
        # A try that is queued, and not refused, shows that the abandoned request has left its place.
        until(lambda: _status_of_a_try(gate.server.target) == "DEADLINE_EXCEEDED")
        gate.open()
        running.result()
        client.encode(constant(5))
        assert gate.batches()[-1].split()[-1] == "5"
        assert not any("77" in batch for batch in gate.batches())


def _status_of_a_try(target: str) -> str:
    try:
        with Client(target, timeout=1) as client:
            client.encode(constant(88))
    except ClientError as error:
        return error.status
    return "OK"
