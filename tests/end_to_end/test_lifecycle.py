"""Start, overload, deadlines, failure and end of a real server, whose compute the tests hold up."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers import END_TO_END, ServerProcess, environment_without_torch, run_python
from tiny_model import IMAGE_SIZE, latents_of

from engine.client import Client, ClientError
from protos import dfcvae_pb2 as pb
from protos import dfcvae_pb2_grpc

HEALTH = health_pb2.HealthCheckResponse


def constant(value: int, count: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((count, IMAGE_SIZE, IMAGE_SIZE, 3), value, np.uint8)


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that is sure to come (or else for the test's time limit)."""
    while not condition():
        time.sleep(0.005)


class Gate:
    """What a test holds in its hands of a gated server."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server = server
        self._folder = folder

    def close(self) -> None:
        (self._folder / "batches").write_text("")
        (self._folder / "closed").touch()

    def open(self) -> None:
        (self._folder / "closed").unlink()

    def batches(self) -> list[str]:
        """The batches since the gate was closed, as `gated_server.py` writes them."""
        return (self._folder / "batches").read_text().splitlines()


@contextmanager
def gated_server(bundle: Path, folder: Path, *options: str) -> Iterator[Gate]:
    command = [str(END_TO_END / "gated_server.py"), str(folder), "--bundle", str(bundle), *options]
    with ServerProcess(command, folder) as server:
        yield Gate(server, folder)


def test_it_serves_only_after_its_warm_up(tiny_bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "closed").touch()
    command = [str(END_TO_END / "gated_server.py"), str(tmp_path), "--bundle", str(tiny_bundle)]
    server = ServerProcess(command, tmp_path, port)
    try:
        with grpc.insecure_channel(server.target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            def check(name: str) -> int:
                request = health_pb2.HealthCheckRequest(service=name)
                return int(stub.Check(request, wait_for_ready=True).status)

            assert check("") == check("dfcvae.v1.LatentEngine") == HEALTH.NOT_SERVING
            (tmp_path / "closed").unlink()
            with server:
                assert check("") == check("dfcvae.v1.LatentEngine") == HEALTH.SERVING
    finally:
        server.kill()


def test_clients_share_a_batch(tiny_bundle: Path, tmp_path: Path) -> None:
    # An hour of delay: batches start only because they are full.
    with (
        gated_server(tiny_bundle, tmp_path, "--max-delay-ms", "3600000") as gate,
        ThreadPoolExecutor(4) as pool,
    ):
        gate.close()
        gate.open()

        def encode(value: int) -> None:
            with Client(gate.server.target) as client:
                np.testing.assert_array_equal(client.encode(constant(value, 8)).mu, latents_of(constant(value, 8)))

        list(pool.map(encode, [1, 2, 3, 4]))
        (batch,) = gate.batches()
        graph, *values = batch.split()
        assert graph == "encode"
        assert sorted(map(int, values)) == [1] * 8 + [2] * 8 + [3] * 8 + [4] * 8


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
        with pytest.raises(ClientError, match=r"at most 20 are accepted"):
            client.encode(constant(4, 21))
        gate.open()
        assert len(accepted.result().mu) == 15
        assert len(running.result().mu) == 1
        assert len(client.encode(constant(5, 20)).mu) == 20


@pytest.mark.parametrize("way", ["deadline", "cancel"])
def test_what_nobody_waits_for_is_not_computed(tiny_bundle: Path, tmp_path: Path, way: str) -> None:
    with (
        gated_server(tiny_bundle, tmp_path, "--max-queue", "20") as gate,
        ThreadPoolExecutor(1) as pool,
        grpc.insecure_channel(gate.server.target) as channel,
        Client(gate.server.target) as client,
    ):
        stub: Any = dfcvae_pb2_grpc.LatentEngineStub(channel)  # type: ignore[no-untyped-call]
        gate.close()
        running = pool.submit(client.encode, constant(1))
        until(lambda: gate.batches() == ["encode 1"])
        images = constant(77, 20)
        raw = pb.RawImages(count=20, height=IMAGE_SIZE, width=IMAGE_SIZE, data=images.tobytes())
        request = pb.EncodeRequest(images=pb.ImageBatch(raw=raw))
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


def test_a_failure_of_the_backend_stays_inside(tiny_bundle: Path, tmp_path: Path) -> None:
    with gated_server(tiny_bundle, tmp_path) as gate, Client(gate.server.target) as client:
        with pytest.raises(ClientError) as failure:
            client.encode(constant(13))
        assert failure.value.status == "INTERNAL"
        assert failure.value.message == "the model failed on this request; the server's log has the reason"
        np.testing.assert_array_equal(client.edit(constant(12), {"Male": 0}), constant(12))
        assert "RuntimeError: a secret of the backend" in gate.server.log


def test_sigterm_answers_what_was_accepted(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        # With such a grace the test ends only if nothing but the accepted request holds up the server.
        gated_server(tiny_bundle, tmp_path, "--grace-s", "3600") as gate,
        ThreadPoolExecutor(1) as pool,
        Client(gate.server.target) as client,
        grpc.insecure_channel(gate.server.target) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == HEALTH.SERVING
        gate.close()
        accepted = pool.submit(client.edit, constant(9, 50), {"Male": 0})
        until(lambda: len(gate.batches()) == 1)
        gate.server.terminate()
        assert next(watch).status == HEALTH.NOT_SERVING
        with Client(gate.server.target) as late, pytest.raises(ClientError) as refusal:
            late.model()
        assert refusal.value.status == "UNAVAILABLE"
        assert "the server is shutting down; send the request to another one" in refusal.value.message
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert check.status == HEALTH.NOT_SERVING
        assert not accepted.done()
        gate.open()
        np.testing.assert_array_equal(accepted.result(), constant(9, 50))
        assert list(watch) == []
        assert gate.server.wait() == 0
        assert "Traceback" not in gate.server.log


def test_sigterm_under_load_breaks_no_answer(tiny_bundle: Path, tmp_path: Path) -> None:
    with ServerProcess(["-m", "engine", "--bundle", str(tiny_bundle)], tmp_path) as server:
        workers = [
            subprocess.Popen(
                [sys.executable, str(END_TO_END / "client_worker.py"), server.target, str(seed), "0"],
                env=environment_without_torch(tmp_path / "site"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for seed in range(3)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "started\n"
        server.terminate()
        for worker in workers:
            answers, errors = worker.communicate()
            assert worker.returncode == 0, errors
            assert int(answers) >= 4
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_sigint_ends_it_too(tiny_bundle: Path, tmp_path: Path) -> None:
    with ServerProcess(["-m", "engine", "--bundle", str(tiny_bundle)], tmp_path) as server:
        os.kill(server.process.pid, 2)
        assert server.wait() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--bundle", "/no/such/bundle"],
            "error: no bundle folder at /no/such/bundle; build it with: python -m ",
        ),
        (["--bundle", "BUNDLE", "--port", "70000"], "error: --port must be from 0 to 65535, not 70000"),
        (["--bundle", "BUNDLE", "--max-queue", "0"], "error: --max-queue must be at least 1, not 0"),
        (
            ["--bundle", "BUNDLE", "--host", "no.such.host.invalid"],
            "error: can't listen on no.such.host.invalid:",
        ),
    ],
)
def test_a_start_that_cannot_be_is_one_line(
    tiny_bundle: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    arguments = [str(tiny_bundle) if option == "BUNDLE" else option for option in options]
    result = run_python(["-m", "engine", *arguments], tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_port_in_use_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        result = run_python(["-m", "engine", "--bundle", str(tiny_bundle), "--port", port], tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: can't listen on 127.0.0.1:{port} (Address already in use); choose another --host or --port\n"
    )


def test_dry_run_prints_the_configuration_and_stops(tmp_path: Path) -> None:
    result = run_python(["-m", "engine", "--bundle", "anywhere", "--max-delay-ms", "2.5", "--dry-run"], tmp_path)
    assert result.returncode == 0
    assert '"max_delay_ms": 2.5' in result.stdout
    assert '"bundle": "anywhere"' in result.stdout
