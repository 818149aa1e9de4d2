"""The generators count what they should: refusals that look like answers, and waiting that nobody saw."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from servers import ServerProcess, server_of
from serving.generator import Outcome, closed_loop, open_loop
from serving.process import Server
from serving.requests import Case, Prepared, ask, ask_model, prepare
from serving.usage import Usage, listener

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


def asked(target: str, case: Case) -> Prepared:
    """A case that the server has answered once."""
    prepared = prepare(case, ask_model(target))
    return replace(prepared, answer_bytes=len(ask(target, prepared)))


def offered(target: str, prepared: Prepared, rate: float, seconds: float) -> Outcome:
    return asyncio.run(open_loop(target, prepared, rate, seconds))


def kept_up(target: str, prepared: Prepared, in_flight: int, seconds: float = 0.05) -> Outcome:
    return asyncio.run(closed_loop(target, prepared, in_flight, seconds))


def test_open_loop_counts_waiting_from_the_intended_start(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_SERVER)
    with Server([script]) as server:
        outcome = offered(server.target, Prepared("/slow/Slow", b""), rate=200, seconds=0.3)
    calls = outcome.calls
    assert len(calls) == 60
    assert len(outcome.late) == 60
    # 60 answers of 0.02 s one after the other: however fast they were asked for, the last one waited for the others.
    arriving = float(calls.starts.max() - calls.starts.min())
    assert calls.latencies.max() >= 60 * 0.02 - arriving - 0.001


@pytest.mark.parametrize(
    "prepared", [NONSENSE, Prepared("/dfcvae.v1.LatentEngine/EditStream", b"nonsense", stream=True)]
)
def test_refusals_are_no_answers(server: ServerProcess, prepared: Prepared) -> None:
    reason = "INVALID_ARGUMENT: the request is not a message of this method; use the service's own .proto"
    for outcome in (kept_up(server.target, prepared, 2), offered(server.target, prepared, 100, 0.1)):
        assert outcome.answered == []
        assert list(outcome.failures) == [reason]
        assert len(outcome.refused) == outcome.failures.total() > 0


@pytest.mark.parametrize("case", [
    Case("edit", "raw", "unary", 200, 1), Case("edit", "raw", "stream", 200, 1), Case("slide", "jpeg", "stream", 9, 1),
])  # fmt: skip
def test_whole_requests_are_sent_and_whole_answers_read(server: ServerProcess, case: Case) -> None:
    prepared = asked(server.target, case)
    outcome = offered(server.target, prepared, rate=100, seconds=0.2)
    assert not outcome.failures
    assert len(outcome.answered) == len(outcome.late) == 20
    longer = replace(prepared, answer_bytes=prepared.answer_bytes + 1)
    assert offered(server.target, longer, rate=100, seconds=0.03).failures == {"wrong length": 3}
    for in_flight in (1, 12):
        outcome = kept_up(server.target, prepared, in_flight)
        assert not outcome.failures
        assert len(outcome.answered) >= in_flight


def test_open_loop_survives_the_server(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path) as server:
        prepared = asked(server.target, Case("edit", "raw", "unary", 1, 1))
        with ThreadPoolExecutor() as pool:
            running = pool.submit(offered, server.target, prepared, rate=100, seconds=1.0)
            time.sleep(0.3)
            server.process.kill()
            outcome = running.result()
    assert len(outcome.answered) + outcome.failures.total() == 100
    assert outcome.failures["connection closed"] > 0


def test_the_server_is_found_by_its_port_and_watched(server: ServerProcess) -> None:
    pid = listener(server.target)
    assert pid == server.process.pid
    prepared = prepare(Case("decode", "raw", "unary", 512, 1), ask_model(server.target))
    with Usage(pid) as usage:
        while len(usage.rss_mib) < 3:
            ask(server.target, prepared)
    assert usage.cpu_s > 0
    assert usage.peak_mib > 10
    assert usage.peak_between(0, usage.wall_s + 1) == usage.peak_mib
