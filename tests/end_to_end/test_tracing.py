"""Spans of a real server, as a collector gets them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from gates import connected, constant, gated_server
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.semconv._incubating.attributes.rpc_attributes import (
    RPC_METHOD,
    RPC_RESPONSE_STATUS_CODE,
    RPC_SYSTEM_NAME,
)
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from scripts import require_refused
from servers import ServerProcess, run_python
from tiny_model import LATENT_DIM

from engine.client import Client, ClientError
from protos import dfcvae_pb2 as pb

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") is None and self.path == "/v1/traces":
                    request = ExportTraceServiceRequest.FromString(data)
                    for resource in request.resource_spans:
                        spans.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def collector() -> Iterator[Collector]:
    taking = Collector()
    thread = threading.Thread(target=taking.server.serve_forever)
    thread.start()
    try:
        yield taking
    finally:
        taking.server.shutdown()
        taking.server.server_close()
        thread.join()


def traced_command(bundle: Path, destination: str) -> list[str]:
    return ["-m", "engine", "--bundle", str(bundle), "--traces", destination]


def attributes(span: Span) -> dict[str, str | int]:
    values = {}
    for entry in span.attributes:
        kind = entry.value.WhichOneof("value")
        assert kind is not None
        values[entry.key] = getattr(entry.value, kind)
    return values


def make_calls(server: ServerProcess) -> None:
    with connected(server.target) as stub:
        latents = pb.LatentBatch(count=3, dim=LATENT_DIM, data=np.zeros((3, LATENT_DIM), "<f4").tobytes())
        metadata = [TRACEPARENT, ("x-request-id", "traced-1")]
        stub.Decode(pb.DecodeRequest(latents=latents), metadata=metadata, timeout=30)
        with pytest.raises(grpc.RpcError):
            stub.Decode(pb.DecodeRequest(), timeout=30)
        list(stub.EditStream(iter([pb.EditStreamRequest(latents=latents)]), timeout=30))


def spans_on_the_console(server: ServerProcess) -> list[Any]:
    """What a server that is about to end leaves there."""
    assert server.process.stdout is not None
    text = server.process.stdout.read()
    assert server.wait() == 0
    spans, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        span, end = decoder.raw_decode(text)
        spans.append(span)
        text = text[end:]
    return spans


def test_every_call_is_a_span_below_that_of_the_client(tiny_bundle: Path, tmp_path: Path) -> None:
    with collector() as taking:
        with ServerProcess(traced_command(tiny_bundle, taking.url), tmp_path) as server:
            make_calls(server)
            server.terminate()
            assert server.wait() == 0
        good, bad, stream = sorted(taking.spans, key=lambda span: span.start_time_unix_nano)
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE, PARENT)
    assert good.name == "dfcvae.v1.LatentEngine/Decode"
    assert good.kind == Span.SPAN_KIND_SERVER
    expected = {
        RPC_SYSTEM_NAME: "grpc",
        RPC_METHOD: "dfcvae.v1.LatentEngine/Decode",
        RPC_RESPONSE_STATUS_CODE: "OK",
        "dfcvae.request_id": "traced-1",
        "dfcvae.images": 3,
    }
    assert expected.items() <= attributes(good).items()
    assert good.end_time_unix_nano > good.start_time_unix_nano
    assert bad.trace_id.hex() != TRACE
    assert attributes(bad)[RPC_RESPONSE_STATUS_CODE] == "INVALID_ARGUMENT"
    assert "latents" in str(attributes(bad)["dfcvae.error"])
    assert attributes(stream)[RPC_METHOD] == "dfcvae.v1.LatentEngine/EditStream"
    assert attributes(stream)["dfcvae.images"] == 3
    # What a client does wrong is no failure of the server.
    assert {span.status.code for span in (good, bad, stream)} == {Status.STATUS_CODE_UNSET}


def test_a_failure_of_the_server_is_one_of_its_span(tiny_bundle: Path, tmp_path: Path) -> None:
    with collector() as taking, gated_server(tiny_bundle, tmp_path, "--traces", taking.url) as gate:
        with Client(gate.server.target) as client, pytest.raises(ClientError, match="INTERNAL"):
            client.encode(constant(13))
        gate.server.terminate()
        assert gate.server.wait() == 0
        (span,) = taking.spans
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)[ERROR_TYPE] == attributes(span)[RPC_RESPONSE_STATUS_CODE] == "INTERNAL"


def test_a_span_has_the_service_that_was_called(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        ServerProcess(traced_command(tiny_bundle, "console"), tmp_path) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        assert len(list(reflection.ServerReflectionInfo(iter([request]), timeout=30))) == 1
        server.terminate()
        (span,) = spans_on_the_console(server)
    assert span["name"] == "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    assert span["attributes"][RPC_METHOD] == span["name"]


def test_spans_can_go_to_the_console(tiny_bundle: Path, tmp_path: Path) -> None:
    with ServerProcess(traced_command(tiny_bundle, "console"), tmp_path) as server:
        make_calls(server)
        server.terminate()
        spans = spans_on_the_console(server)
    names = [span["attributes"][RPC_METHOD].rpartition("/")[2] for span in spans]
    assert names == ["Decode", "Decode", "EditStream"]


def test_a_collector_that_is_away_holds_nothing_up(tiny_bundle: Path, tmp_path: Path) -> None:
    with ServerProcess(traced_command(tiny_bundle, "http://127.0.0.1:9"), tmp_path) as server:
        make_calls(server)
        server.terminate()
        assert server.wait() == 0


def test_a_missing_package_is_named_with_its_extra(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "opentelemetry").mkdir(parents=True)
    (tmp_path / "site" / "opentelemetry" / "__init__.py").write_text("raise ImportError('not here')")
    result = run_python([*traced_command(tiny_bundle, "console"), "--port", "0"], tmp_path)
    mend = "pip install 'dfc-vae[traces]'\n"
    require_refused(result, f"--traces needs OpenTelemetry, which can't be imported (not here); {mend}")
