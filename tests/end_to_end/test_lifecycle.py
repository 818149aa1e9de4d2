"""Start, overload, deadlines, failure and end of a real server, whose compute the tests hold up."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from batches import raw_batch
from bundles import write_tiny_bundle
from gates import connected, constant, gated_command, gated_server, list_of, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scripts import require_refused
from servers import (
    END_TO_END,
    ROOT,
    ServerProcess,
    client_workers,
    environment_without_torch,
    failed_starts,
    run_python,
    server_of,
    start_python,
)
from serving.requests import stub_of
from tiny_model import latents_of

from engine.client import Client, ClientError
from protos import dfcvae_pb2 as pb

HEALTH = health_pb2.HealthCheckResponse


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_it_serves_only_after_its_warm_up(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").touch()
    server = ServerProcess(gated_command(tiny_bundle, tmp_path), tmp_path, free_port())
    try:
        with grpc.insecure_channel(server.target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            def check(name: str) -> int:
                request = health_pb2.HealthCheckRequest(service=name)
                return int(stub.Check(request, wait_for_ready=True).status)

            assert check("") == check("dfcvae.v1.LatentEngine") == HEALTH.NOT_SERVING
            with pytest.raises(grpc.RpcError) as early:
                stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30)
            assert early.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "the server is warming up; send the request again when" in early.value.details()
            (tmp_path / "closed").unlink()
            with server:
                assert check("") == check("dfcvae.v1.LatentEngine") == HEALTH.SERVING
    finally:
        server.kill()


def test_sigterm_during_the_warm_up_ends_it(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").touch()
    server = ServerProcess(gated_command(tiny_bundle, tmp_path), tmp_path, free_port())
    try:
        until((tmp_path / "batches").exists)
        server.terminate()
        with grpc.insecure_channel(server.target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            assert [answer.status for answer in watch] == [HEALTH.NOT_SERVING]
        (tmp_path / "closed").unlink()
        assert server.wait() == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""
        assert "Traceback" not in server.log
    finally:
        server.kill()


def test_clients_share_a_batch(tiny_bundle: Path, tmp_path: Path) -> None:
    # An hour of delay: batches start only because they are full.
    with gated_server(tiny_bundle, tmp_path, "--max-delay-ms", "3600000") as gate, ThreadPoolExecutor(4) as pool:
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


def test_batches_may_be_smaller_than_the_bundle_was_built_for(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        gated_server(tiny_bundle, tmp_path, "--max-batch", "3", "--max-delay-ms", "3600000") as gate,
        Client(gate.server.target) as client,
    ):
        assert client.model().max_batch_size == 3
        np.testing.assert_array_equal(client.encode(constant(2, 6)).mu, latents_of(constant(2, 6)))
        assert gate.batches()[-2:] == ["encode 2 2 2", "encode 2 2 2"]


def test_batches_may_not_be_larger_than_the_bundle_was_built_for(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run_python(["-m", "engine", "--bundle", str(tiny_bundle), "--port", "0", "--max-batch", "64"], tmp_path)
    assert result.returncode == 2
    assert "batches of at most 32 images, not 64; give --max-batch 32 or less, or build it again" in result.stderr


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
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert check.status == HEALTH.NOT_SERVING
        assert list(watch) == []  # clients have been sent away
        with Client(gate.server.target, retries=0) as late, pytest.raises(ClientError, match="UNAVAILABLE"):
            late.model()
        assert not accepted.done()
        gate.open()
        np.testing.assert_array_equal(accepted.result(), constant(9, 50))
        assert gate.server.wait() == 0
        assert "Traceback" not in gate.server.log


def test_at_the_end_no_batch_waits_for_others(tiny_bundle: Path, tmp_path: Path) -> None:
    # Hours of delay and grace: only the end itself starts the batch.
    options = ("--max-delay-ms", "3600000", "--grace-s", "7200", "--metrics-port", "0")
    with server_of(tiny_bundle, tmp_path, *options) as server, ThreadPoolExecutor(1) as pool:
        with Client(server.target) as client:
            accepted = pool.submit(client.encode, constant(9))
            until(lambda: server.metric("dfcvae_queue_images", model="default", graph="encode") == 1)
            server.terminate()
            np.testing.assert_array_equal(accepted.result().mu, latents_of(constant(9)))
        assert server.wait() == 0


def test_a_long_end_keeps_no_client_from_another_server(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    with gated_server(tiny_bundle, tmp_path, "--grace-s", "3600") as gate, server_of(tiny_bundle, folder) as other:
        both = f"ipv4:{gate.server.target},{other.target}"
        with (
            ThreadPoolExecutor(1) as pool,
            Client(gate.server.target) as slow,
            Client(both, retries=0) as own,
            grpc.insecure_channel(both) as generic,  # it stays with the first server that it can reach
        ):
            watch = health_pb2_grpc.HealthStub(generic).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == HEALTH.SERVING
            own.model()
            gate.close()
            accepted = pool.submit(slow.edit, constant(9, 50), {"Male": 0})
            until(lambda: len(gate.batches()) == 1)
            gate.server.terminate()
            ended = [answer.status for answer in watch]
            assert ended == [HEALTH.NOT_SERVING]
            for value in range(5):
                np.testing.assert_array_equal(own.encode(constant(value)).mu, latents_of(constant(value)))
                stub_of(generic).GetModel(pb.GetModelRequest())
            assert not accepted.done()
            gate.open()
            np.testing.assert_array_equal(accepted.result(), constant(9, 50))
        assert gate.server.wait() == 0


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room in the 107 bytes of a socket's."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_unix_socket_is_for_this_user_and_gone_at_the_end(tiny_bundle: Path, tmp_path: Path, short: Path) -> None:
    path = short / "engine.sock"
    command = ["-m", "engine", "--bundle", str(tiny_bundle), "--host", f"unix:{path}"]
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # and a server that was killed left it
    with ServerProcess(command, tmp_path) as server:
        assert server.target == f"unix:{path}"
        umask = os.umask(0o077)
        os.umask(umask)
        assert not path.stat().st_mode & umask
        with Client(server.target) as client:
            np.testing.assert_array_equal(client.encode(constant(3)).mu, latents_of(constant(3)))
        result = run_python(command, tmp_path)
        assert result.returncode == 2
        assert result.stderr.endswith(
            f"can't listen on unix:{path} (another server listens there); choose another --host\n"
        )
        with Client(server.target) as client:
            assert client.health() == "SERVING"
        server.terminate()
        assert server.wait() == 0
    assert not path.exists()


def test_what_can_not_be_a_unix_socket(tiny_bundle: Path, tmp_path: Path, short: Path) -> None:
    (short / "file").write_text("mine")
    reasons = {
        f"unix:{short}/file": "it is there, and no socket",
        f"unix:{short}/no/folder": "No such file or directory",
        f"unix:{short}/{'x' * 110}": "AF_UNIX path too long",
    }
    results = failed_starts([["--bundle", str(tiny_bundle), "--host", host] for host in reasons], tmp_path)
    for result, (host, reason) in zip(results, reasons.items(), strict=True):
        assert result.returncode == 2
        assert result.stderr.splitlines()[-1] == f"error: can't listen on {host} ({reason}); choose another --host"
    assert (short / "file").read_text() == "mine"


def test_a_server_without_calls_and_grace_cuts_none_off(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path, "--grace-s", "0") as server:
        server.terminate()
        assert server.wait() == 0
        assert "cut off" not in server.log


def test_sigterm_ends_streams_after_what_they_have_read(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        gated_server(tiny_bundle, tmp_path, "--grace-s", "3600", "--metrics-port", "0") as gate,
        connected(gate.server.target) as stub,
    ):
        requests = [pb.EditStreamRequest(images=raw_batch(constant(value)), id=value) for value in (1, 2, 3)]
        finished = threading.Event()

        def unfinished(first: list[pb.EditStreamRequest]) -> Iterator[pb.EditStreamRequest]:
            yield from first
            finished.wait()

        def received() -> float:
            return gate.server.metric("dfcvae_received_messages_total", method="EditStream")

        gate.close()
        whole = stub.EditStream(iter(requests))
        open_ended = stub.EditStream(unfinished(requests))
        silent = stub.EditStream(unfinished([]))
        until(lambda: received() == 6 and gate.server.metric("dfcvae_calls_in_flight") == 3)
        gate.server.terminate()
        assert list_of(silent) == ([], grpc.StatusCode.UNAVAILABLE)
        gate.open()
        assert list_of(whole) == ([1, 2, 3], grpc.StatusCode.OK)
        assert list_of(open_ended) == ([1, 2, 3], grpc.StatusCode.UNAVAILABLE)
        assert "the server is shutting down; send what is unanswered to another one" in open_ended.details()
        assert gate.server.wait() == 0
        assert "Traceback" not in gate.server.log
        finished.set()


def test_sigterm_under_load_breaks_no_answer(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path) as server:
        workers = client_workers(server.target, tmp_path)
        server.terminate()
        for worker in workers:
            answers, errors = worker.communicate()
            assert worker.returncode == 0, errors
            assert int(answers) >= 4
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_clients_that_are_killed_leave_nothing_behind(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path, "--metrics-port", "0") as server:
        for worker in client_workers(server.target, tmp_path):
            worker.kill()
            worker.communicate()
        # And one that says only half of what it announced: gRPC's preface, and the begin of a frame.
        host, _, port = server.target.rpartition(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x40\x00\x00")
        until(lambda: server.metric("dfcvae_calls_in_flight") == 0)
        assert server.metric("dfcvae_bytes_in_flight") == 0
        until(lambda: server.metric("dfcvae_queue_images", model="default", graph="encode") == 0)
        with Client(server.target) as client:
            np.testing.assert_array_equal(client.encode(constant(3)).mu, latents_of(constant(3)))
        server.terminate()
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_sigint_ends_it_too(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path) as server:
        os.kill(server.process.pid, 2)
        assert server.wait() == 0


def test_a_start_that_cannot_be_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        messages = {
            f"--port {port}": (
                f"can't listen on 127.0.0.1:{port} (Address already in use); choose another --host or --port\n"
            ),
            "--bundle /no/such/bundle": "no bundle folder at /no/such/bundle; build it with: python -m ",
            "--port 70000": "--port must be from 0 to 65535, not 70000",
            "--host no.such.host.invalid": "can't listen on no.such.host.invalid:",
            "--host a..b": "can't listen on a..b:50051 (no name of a host); choose another --host or --port",
            "--port 0 --metrics-port 0 --metrics-host a..b": "can't listen on a..b:0 (no name of a host) for metrics;",
            "--tokens /no/such/tokens": "--tokens /no/such/tokens can't be read",
            "--tls-cert /no/cert --tls-key /no/key": "--tls-key /no/key can't be read (No such file",
            f"--tls-cert {empty} --tls-key {empty}": (
                f"--tls-cert {empty} and --tls-key {empty} must be PEM, and belong together ("
            ),
        }
        bundle = ["--bundle", str(tiny_bundle)]
        commands = [[*([] if "--bundle" in options else bundle), *options.split()] for options in messages]
        results = failed_starts(commands, tmp_path)
    for result, message in zip(results, messages.values(), strict=True):
        require_refused(result, message)
        assert result.stdout == ""


def test_dry_run_prints_the_configuration_and_stops(tmp_path: Path) -> None:
    result = run_python(["-m", "engine", "--bundle", "anywhere", "--max-delay-ms", "2.5", "--dry-run"], tmp_path)
    assert result.returncode == 0
    assert json.loads(result.stdout)["max_delay_ms"] == 2.5
    assert json.loads(result.stdout)["bundle"] == ["anywhere"]


@pytest.mark.parametrize("name", ["Server", "ReceiveCloseOnServerOperation", "SendStatusFromServerOperation"])
def test_a_grpcio_that_cannot_carry_calls_is_one_sentence_at_the_start(
    tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    command = [str(END_TO_END / "changed_grpcio.py"), name, "--bundle", str(tiny_bundle), "--port", "0"]
    result = run_python([*command, "--log-level", "error"], tmp_path)
    assert result.returncode == 2
    assert "serving" not in result.stdout
    (*_, sentence) = result.stderr.splitlines()
    assert sentence.startswith("error: the server's transport fails with grpcio ")
    allowed = sentence.split("pip install ")[1].strip("'")
    assert f'"{allowed}"' in (ROOT / "pyproject.toml").read_text()


def test_a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    pipes, commands = [], []
    for name in ("directions.safetensors", "manifest.json", "tokens"):
        bundle = write_tiny_bundle(tmp_path / f"bundle without {name}")
        (bundle / "tokens").write_text("anna " + 32 * "a")
        (bundle / name).unlink()
        os.mkfifo(bundle / name)
        pipes.append(bundle / name)
        commands.append(["--bundle", str(bundle), "--tokens", str(bundle / "tokens"), "--port", "0"])
    for result, pipe in zip(failed_starts(commands, tmp_path), pipes, strict=True):
        assert result.returncode == 2
        assert f"{pipe} can't be read" in result.stderr
        assert "it is no regular file" in result.stderr


def test_a_log_that_nobody_reads_holds_up_nobody(tiny_bundle: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    command = ["-m", "engine", "--bundle", str(tiny_bundle), "--port", "0", "--log-level", "debug"]
    server = start_python(command, tmp_path, stderr=writing)
    os.close(writing)
    try:
        assert server.stdout is not None
        target = server.stdout.readline().split()[-1]
        with connected(target) as stub:
            for _ in range(200):  # some 80 bytes of log each
                stub.GetModel(pb.GetModelRequest(), timeout=60)
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        os.close(reading)


@pytest.mark.parametrize("stdout", ["closed", "full"])
def test_a_stdout_that_cannot_be_written_is_no_reason_not_to_serve(
    tiny_bundle: Path, tmp_path: Path, stdout: str
) -> None:
    port = free_port()
    command = f"exec {sys.executable} -m engine --bundle {tiny_bundle} --port {port} "
    command += ">&-" if stdout == "closed" else ">/dev/full"
    environment = environment_without_torch(tmp_path / "site")
    server = subprocess.Popen(command, shell=True, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            until(lambda: health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True).status == HEALTH.SERVING)
        server.terminate()
        _, log = server.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
    assert server.returncode == 0
    assert "Traceback" not in log
    assert ("stdout can't be written ([Errno 28] No space left on device)" in log) == (stdout == "full")


@pytest.mark.parametrize("stdout", [">&-", ">/dev/full"])
def test_start_errors_keep_their_exit_code_without_a_stdout(tmp_path: Path, stdout: str) -> None:
    for options in ("--bundle /nowhere", "--bundle /nowhere --dry-run" if stdout == ">/dev/full" else "--port x"):
        command = f"exec {sys.executable} -m engine {options} {stdout}"
        environment = environment_without_torch(tmp_path / "site")
        result = subprocess.run(
            command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
