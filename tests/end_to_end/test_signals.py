"""Signals at every moment of a server's life."""

import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from gates import Gate, constant, gated_command, gated_server, until
from servers import END_TO_END, ServerProcess, server_of, start_python

from engine.client import Client, ClientError, Posterior


def test_hanging_up_during_the_warm_up_is_heeded_after_it(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").touch()
    server = ServerProcess(gated_command(tiny_bundle, tmp_path), tmp_path)
    try:
        until((tmp_path / "batches").exists)
        server.hang_up()
        (tmp_path / "closed").unlink()
        with server, Client(server.target) as client:
            server.wait_for_log("SIGHUP: reading bundles and tokens again")
            assert client.encode(constant(3)).mu.shape[0] == 1
            server.terminate()
            assert server.wait() == 0
    finally:
        server.kill()


@contextmanager
def call_in_compute(bundle: Path, folder: Path, *options: str) -> "Iterator[tuple[Gate, Future[Posterior]]]":
    """A server with a call whose batch is held, and the call's outcome."""
    with (
        gated_server(bundle, folder, *options) as gate,
        ThreadPoolExecutor(1) as pool,
        Client(gate.server.target, retries=0) as client,
    ):
        gate.close()
        call = pool.submit(client.encode, constant(1))
        until(lambda: len(gate.batches()) == 1)
        yield gate, call


def test_a_backend_that_is_stuck_does_not_keep_the_server_alive(tiny_bundle: Path, tmp_path: Path) -> None:
    with call_in_compute(tiny_bundle, tmp_path, "--grace-s", "0.5") as (gate, stuck):
        gate.server.terminate()
        assert gate.server.wait() == 1
        assert "the backend is stuck in a batch of default; the process ends without it" in gate.server.log
        with pytest.raises(ClientError):
            stuck.result()


def test_a_second_signal_ends_the_grace(tiny_bundle: Path, tmp_path: Path) -> None:
    with call_in_compute(tiny_bundle, tmp_path, "--grace-s", "3600") as (gate, cut_off):
        gate.server.terminate()
        gate.server.wait_for_log("stopping: clients are sent away; calls being answered: 1")
        while "asked again to end: 1 calls are cut off" not in gate.server.log:  # soon after the first it is its echo
            gate.server.terminate()
        with pytest.raises(ClientError):
            cut_off.result()
        gate.open()
        assert gate.server.wait() == 0


def test_a_signal_at_any_moment_of_the_start_ends_it_well(tiny_bundle: Path, tmp_path: Path) -> None:
    """From the first line of `main` on; before, Python itself starts."""
    for turn in range(3):
        command = ["-X", "importtime", "-m", "engine", "--bundle", str(tiny_bundle), "--port", "0"]
        process = start_python(command, tmp_path, stdout=subprocess.DEVNULL)
        assert process.stderr is not None
        moment = ("asyncio", "grpc._cython", "engine.server")[turn]
        while moment not in process.stderr.readline():
            pass
        process.terminate()
        process.stderr.read()
        assert process.wait(60) == 0, moment


def test_signals_without_end_do_not_change_how_it_ends(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path) as server:
        while server.process.poll() is None:
            with suppress(ProcessLookupError):
                server.process.send_signal(signal.SIGTERM)
        assert server.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_a_fork_ends_the_fork_and_nothing_else(tiny_bundle: Path, tmp_path: Path, number: int) -> None:
    command = [str(END_TO_END / "forking_server.py"), str(tmp_path), "--bundle", str(tiny_bundle)]
    with ServerProcess(command, tmp_path) as server, Client(server.target) as client:
        until((tmp_path / "fork").exists)
        fork = psutil.Process(int((tmp_path / "fork").read_text()))
        fork.send_signal(number)
        until(lambda: fork.status() == psutil.STATUS_ZOMBIE)
        assert client.encode(constant(3)).mu.shape[0] == 1
        assert "stopping" not in server.log
        assert "SIGHUP" not in server.log
        server.terminate()
        assert server.wait() == 0
