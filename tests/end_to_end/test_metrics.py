"""What a real server tells Prometheus."""

import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from gates import connected, constant, gated_server, until
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from scripts import require_refused
from servers import ROOT, ServerProcess, run_python, server_of
from tiny_model import LATENT_DIM, random_images

from engine.client import Client, ClientError
from engine.telemetry.metrics import Metrics
from protos import dfcvae_pb2 as pb


@pytest.fixture
def measured(tiny_bundle: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with server_of(f"tiny={tiny_bundle}", tmp_path, "--metrics-port", "0") as server:
        yield server


def test_calls_are_counted_and_timed(measured: ServerProcess) -> None:
    with Client(measured.target) as client:
        for seed in range(3):
            client.encode(random_images(5, seed))
        client.edit(random_images(2, 7), {"Smiling": 1.0})
        for _ in range(2):
            with pytest.raises(ClientError):
                client.edit(random_images(1, 7), {"Bald": 1.0})
    metric = measured.metric
    assert metric("dfcvae_requests_total", method="Encode", code="OK") == 3
    assert metric("dfcvae_requests_total", method="Edit", code="OK") == 1
    assert metric("dfcvae_requests_total", method="Edit", code="NOT_FOUND") == 2
    assert metric("dfcvae_images_total", method="Encode") == 15
    assert metric("dfcvae_images_total", method="Edit") == 2
    labels = {
        "rpc_system_name": "grpc",
        "rpc_method": "dfcvae.v1.LatentEngine/Encode",
        "rpc_response_status_code": "OK",
        "error_type": "",
    }
    assert metric("rpc_server_call_duration_seconds_count", **labels) == 3
    assert 0 < metric("rpc_server_call_duration_seconds_sum", **labels) < 30
    failed = {"rpc_method": "dfcvae.v1.LatentEngine/Edit", "rpc_response_status_code": "NOT_FOUND"}
    assert metric("rpc_server_call_duration_seconds_count", **{**labels, **failed}) == 2
    assert metric("dfcvae_received_messages_total", method="Encode") == 3
    # The pixels that came and the latents that went, and a few bytes around each.
    assert 15 * 192 < metric("dfcvae_received_bytes_total", method="Encode") < 15 * 192 + 200
    assert 15 * LATENT_DIM * 8 < metric("dfcvae_sent_bytes_total", method="Encode") < 15 * LATENT_DIM * 8 + 200
    assert metric("dfcvae_calls_in_flight") == metric("dfcvae_bytes_in_flight") == 0
    assert metric("process_resident_memory_bytes") > 1e6


@pytest.mark.parametrize(
    ("code", "error"), [("OK", ""), ("INVALID_ARGUMENT", ""), ("INTERNAL", "INTERNAL"), ("UNAVAILABLE", "UNAVAILABLE")]
)
def test_only_failures_of_the_server_are_errors(code: str, error: str) -> None:
    metrics = Metrics()
    metrics.method("/dfcvae.v1.LatentEngine/Edit").ended(code, 0.25)
    found = [line for line in generate_latest(metrics.registry).decode().splitlines() if "_seconds_sum{" in line]
    assert [line for line in found if f'status_code="{code}"' in line and f'error_type="{error}"' in line]


def test_queues_and_batches_are_counted(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--metrics-port", "0"]
    with gated_server(tiny_bundle, tmp_path, *options) as gate, Client(gate.server.target) as client:
        metric = gate.server.metric
        labels = {"model": "default", "graph": "encode"}
        client.encode(constant(1, 50))
        assert metric("dfcvae_batch_images_sum", **labels) == 50
        batches = metric("dfcvae_batch_images_count", **labels)
        assert 2 <= batches <= 4
        assert metric("dfcvae_compute_seconds_count", **labels) == batches
        assert metric("dfcvae_queue_wait_seconds_count", **labels) >= 1
        assert metric("dfcvae_queue_images", **labels) == 0
        with pytest.raises(ClientError):
            client.encode(constant(13))
        assert metric("dfcvae_failed_batches_total", **labels) == 1
        assert metric("dfcvae_requests_total", method="Encode", code="INTERNAL") == 1


def test_the_figures_in_flight_are_those_of_the_moment(tiny_bundle: Path, tmp_path: Path) -> None:
    with gated_server(tiny_bundle, tmp_path, "--metrics-port", "0") as gate, connected(gate.server.target) as stub:
        gate.close()
        request = pb.DecodeRequest(latents=pb.LatentBatch(count=1, dim=LATENT_DIM, data=bytes(4 * LATENT_DIM)))
        calls = [stub.Decode.future(request, timeout=60)]
        until(lambda: len(gate.batches()) == 1)
        calls += [stub.Decode.future(request, timeout=60) for _ in range(4)]
        until(lambda: gate.server.metric("dfcvae_queue_images", model="default", graph="decode") == 4)
        assert gate.server.metric("dfcvae_calls_in_flight") == 5
        assert gate.server.metric("dfcvae_bytes_in_flight") == 5 * request.ByteSize()
        calls.pop().cancel()
        until(lambda: gate.server.metric("dfcvae_requests_total", method="Decode", code="CANCELLED") == 1)
        assert gate.server.metric("dfcvae_queue_images", model="default", graph="decode") == 3
        gate.open()
        assert [call.result().images.raw.count for call in calls] == [1] * 4


def test_streams_count_messages(measured: ServerProcess) -> None:
    with connected(measured.target) as stub:
        latents = pb.LatentBatch(count=1, dim=LATENT_DIM, data=bytes(4 * LATENT_DIM))
        requests = [pb.EditStreamRequest(latents=latents), *[pb.EditStreamRequest()] * 9]
        answers = list(stub.EditStream(iter(requests), timeout=30))
    assert measured.metric("dfcvae_received_messages_total", method="EditStream") == 10
    sent = sum(answer.ByteSize() for answer in answers)
    assert measured.metric("dfcvae_sent_bytes_total", method="EditStream") == sent
    assert measured.metric("dfcvae_requests_total", method="EditStream", code="OK") == 1


def test_the_number_of_figures_does_not_grow_with_what_clients_send(measured: ServerProcess) -> None:
    def lines() -> int:
        return len(measured.scrape().splitlines())

    with Client(measured.target) as client, grpc.insecure_channel(measured.target) as channel:

        def send(name: str) -> None:
            client.encode(random_images(1, seed=1))
            with pytest.raises(ClientError):
                client.edit(random_images(1, 7), {name: 1.0})
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/dfcvae.v1.LatentEngine/{name}")(b"", metadata=[("x-request-id", name)])

        send("first")
        before = lines()
        for number in range(50):
            send(f"name{number}")
        assert lines() == before


def test_all_figures_are_in_prometheus_form_and_have_help(measured: ServerProcess) -> None:
    families = list(text_string_to_metric_families(measured.scrape()))
    ours = [family for family in families if family.name.startswith(("dfcvae_", "rpc_"))]
    assert len(ours) >= 14
    assert all(family.documentation for family in ours)
    build = next(family for family in ours if family.name.startswith("dfcvae_build"))
    assert build.samples[0].labels["grpc"] == grpc.__version__
    page = (ROOT / "docs" / "operating.md").read_text()
    told = set(re.findall(r"^# HELP ((?:dfcvae|rpc)_\w+)", measured.scrape(), re.MULTILINE))
    assert told == set(re.findall(r"\b(?:dfcvae_\w+|rpc_server_call_duration_seconds)", page))


def test_a_metrics_port_in_use_is_one_line(measured: ServerProcess, tiny_bundle: Path, tmp_path: Path) -> None:
    port = measured.target.rpartition(":")[2]
    options = ["--bundle", str(tiny_bundle), "--port", "0", "--metrics-port", port]
    result = run_python(["-m", "engine", *options], tmp_path / "second")
    place = f"127.0.0.1:{port} (Address already in use) for metrics"
    require_refused(result, f"can't listen on {place}; choose another --metrics-host or --metrics-port\n")


def test_latencies_are_in_buckets_that_add_up(measured: ServerProcess) -> None:
    with Client(measured.target) as client:
        client.encode(random_images(1, seed=1))
    family = next(
        family
        for family in text_string_to_metric_families(measured.scrape())
        if family.name == "rpc_server_call_duration_seconds"
    )
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in family.samples
        if sample.name.endswith("_bucket") and sample.labels["rpc_method"].endswith("/Encode")
    ]
    bounds, counts = np.array(buckets).T
    assert bounds[0] <= 0.001
    assert bounds[-1] == np.inf
    assert 30 < bounds[-2] < 100
    assert counts[-1] == 1
    assert (np.diff(counts) >= 0).all()


def test_calls_of_unknown_methods_are_counted(measured: ServerProcess) -> None:
    with grpc.insecure_channel(measured.target) as channel:
        for name in ("/no.Service/Method", "/dfcvae.v1.LatentEngine/Nothing"):
            with pytest.raises(grpc.RpcError) as refusal:
                channel.unary_unary(name)(b"")
            assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert measured.metric("dfcvae_requests_total", method="unknown", code="UNIMPLEMENTED") == 2


def test_nothing_else_is_on_the_metrics_port(measured: ServerProcess) -> None:
    (url,) = re.findall(r"metrics on (http://\S+)/metrics", measured.wait_for_log("metrics on http"))
    for path in ("/", "/metrics", "/metrics?debug=1"):
        with urllib.request.urlopen(url + path, timeout=30) as response:
            assert b"dfcvae_requests_total" in response.read()
    for path in ("/secret", "/metrics/x", "/favicon.ico"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url + path, timeout=30)


def test_scrapers_that_send_slowly_do_not_hold_the_port(measured: ServerProcess) -> None:
    ((host, port),) = re.findall(r"metrics on http://(\S+):(\d+)", measured.wait_for_log("metrics on http"))
    slow = [socket.create_connection((host, int(port))) for _ in range(8)]
    while True:
        for connection in slow:
            with suppress(OSError):
                connection.send(b"x")
        try:
            measured.scrape()
            break
        except OSError:
            time.sleep(0.2)
    for connection in slow:
        connection.close()


def test_scrapers_that_stall_get_a_few_threads_and_not_for_ever(measured: ServerProcess) -> None:
    ((host, port),) = re.findall(r"metrics on http://(\S+):(\d+)", measured.wait_for_log("metrics on http"))
    tasks = Path(f"/proc/{measured.process.pid}/task")
    before = len(list(tasks.iterdir()))
    stalled = [socket.create_connection((host, int(port))) for _ in range(50)]
    assert stalled[-1].recv(1) == b""  # beyond the first few, the server hangs up at once
    assert len(list(tasks.iterdir())) - before <= 20
    for connection in stalled:
        assert connection.recv(1) == b""
        connection.close()
    assert measured.metric("dfcvae_calls_in_flight") == 0
