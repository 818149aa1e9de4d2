"""The generators count what they should: refusals that look like answers, and waiting that nobody saw."""

import asyncio
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import ServerProcess
from serving import arrivals, h2load, stream, unary
from serving.bodies import Case, Prepared, ask_model, prepare
from serving.process import Server, Usage, listener

SLOW_SERVER = """
import asyncio, sys
import grpc

class Slow(grpc.GenericRpcHandler):
    def __init__(self):
        self.one_at_a_time = asyncio.Lock()

    def service(self, details):
        async def answer(request, context):
            async with self.one_at_a_time:
                await asyncio.sleep(0.02)
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Slow(),))
    print("serving slowly on", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""

NONSENSE = Prepared("/dfcvae.v1.LatentEngine/Edit", b"nonsense")


def test_open_loop_counts_waiting_from_the_intended_start(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_SERVER)
    with Server([script], tmp_path / "log") as server:
        outcome = arrivals.open_loop(server.target, Prepared("/slow/Slow", b""), 0, rate=200, seconds=0.3)
    calls = outcome.calls
    assert len(calls) == 60
    assert len(outcome.late) == 60
    # 60 answers of 0.02 s one after the other: however fast they were asked for, the last one waited for the others.
    arriving = float(calls.starts.max() - calls.starts.min())
    assert calls.latencies.max() >= 60 * 0.02 - arriving - 0.001


@pytest.mark.parametrize("loop", ["closed", "open", "stream"])
def test_refusals_are_no_answers(server: ServerProcess, loop: str) -> None:
    if loop == "closed":
        outcome = asyncio.run(unary.closed_loop(server.target, NONSENSE, 10, 2, 0.05))
    elif loop == "open":
        outcome = arrivals.open_loop(server.target, NONSENSE, 10, rate=100, seconds=0.1)
        assert list(outcome.failures) == [
            "INVALID_ARGUMENT: the request is not a message of this method; use the service's own .proto"
        ]
    else:
        nonsense = Prepared("/dfcvae.v1.LatentEngine/EditStream", b"nonsense")
        outcome = asyncio.run(stream.closed_loop(server.target, nonsense, 10, 2, 0.05))
    assert len(outcome.calls) == 0
    assert sum(outcome.failures.values()) > 0


def test_open_loop_sends_whole_requests_and_reads_whole_answers(server: ServerProcess) -> None:
    prepared = prepare(Case("edit", "raw", "unary", 200, 1), ask_model(server.target))
    size = len(asyncio.run(unary.ask(server.target, prepared)))
    outcome = arrivals.open_loop(server.target, prepared, size, rate=100, seconds=0.2)
    assert outcome.failures == {}
    assert len(outcome.calls) == len(outcome.late) == 20
    assert arrivals.open_loop(server.target, prepared, size + 1, rate=100, seconds=0.03).failures == {"wrong length": 3}


def test_open_loop_survives_the_server(tiny_bundle: Path, tmp_path: Path) -> None:
    with ServerProcess(["-m", "engine", "--bundle", str(tiny_bundle)], tmp_path) as server:
        prepared = prepare(Case("edit", "raw", "unary", 1, 1), ask_model(server.target))
        size = len(asyncio.run(unary.ask(server.target, prepared)))
        with ThreadPoolExecutor() as pool:
            running = pool.submit(arrivals.open_loop, server.target, prepared, size, rate=100, seconds=1.0)
            time.sleep(0.3)
            server.process.kill()
            outcome = running.result()
    assert len(outcome.calls) + sum(outcome.failures.values()) == 100
    assert outcome.failures["connection closed"] > 0


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_h2load_notices_refusals_that_http_calls_success(server: ServerProcess) -> None:
    refused = h2load.closed_loop(server.target, NONSENSE, 10_000, in_flight=2, requests=20)
    assert refused.failures == {"not right": 20}
    model = ask_model(server.target)
    prepared = prepare(Case("edit", "raw", "unary", 4, 2), model)
    answer = asyncio.run(unary.ask(server.target, prepared))
    right = h2load.closed_loop(server.target, prepared, len(answer), in_flight=2, requests=21)
    assert right.failures == {}
    assert len(right.calls) == 22


def test_the_server_is_found_by_its_port_and_watched(server: ServerProcess) -> None:
    pid = listener(server.target)
    assert pid == server.process.pid
    prepared = prepare(Case("decode", "raw", "unary", 512, 1), ask_model(server.target))
    with Usage(pid) as usage:
        while len(usage.rss_mib) < 3:
            asyncio.run(unary.ask(server.target, prepared))
    assert usage.cpu_s > 0
    assert usage.peak_mib > 10
    assert usage.peak_between(0, usage.wall_s + 1) == usage.peak_mib
