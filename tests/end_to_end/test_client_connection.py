"""What a client does when the server refuses, goes away, or wants to know who it is."""

import asyncio
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from servers import server_of
from serving import http2
from serving.http2 import PREFACE
from tiny_model import random_images

from engine.client import AsyncClient, Client, ClientError, FieldViolation
from engine.client.target import fault_of, is_local
from protos import dfcvae_pb2 as pb

OK = code_pb2.OK
UNAVAILABLE, OVERLOADED, INVALID = code_pb2.UNAVAILABLE, code_pb2.RESOURCE_EXHAUSTED, code_pb2.INVALID_ARGUMENT
CANCELLED = code_pb2.CANCELLED


class Script(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers GetModel with one status after the other, and keeps what it was sent."""

    def __init__(self, *statuses: int, retry_after_s: float = 0.0) -> None:
        self._statuses = list(statuses)
        self._retry_after_s = retry_after_s
        self.metadata: list[dict[str, str]] = []

    def service(self, handler_call_details: Any) -> Any:
        if not handler_call_details.method.endswith("/GetModel"):
            return None  # health is not implemented, so the client takes the server for healthy
        return grpc.unary_unary_rpc_method_handler(
            self._answer, pb.GetModelRequest.FromString, pb.GetModelResponse.SerializeToString
        )

    def _answer(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        self.metadata.append(dict(context.invocation_metadata()))
        status = self._statuses.pop(0) if self._statuses else OK
        if status != OK:
            details = status_pb2.Status(code=status, message="not now", details=self._details(status))
            context.set_trailing_metadata(
                [("grpc-status-details-bin", details.SerializeToString()), ("x-request-id", "number 7")]
            )
            context.abort({code.value[0]: code for code in grpc.StatusCode}[status], "not now")
        fingerprint = "x" * 5_000_000 if request.model == "large" else ""
        return pb.GetModelResponse(image_size=len(self.metadata), fingerprint=fingerprint)

    def _details(self, status: int) -> list[any_pb2.Any]:
        violation = error_details_pb2.BadRequest.FieldViolation(field="edits[0].strength", description="is too much")
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(1000 * self._retry_after_s))
        details: list[Any] = [error_details_pb2.BadRequest(field_violations=[violation])] if status == INVALID else []
        if self._retry_after_s:
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        packed = [any_pb2.Any() for _ in details]
        for box, detail in zip(packed, details, strict=True):
            box.Pack(detail)
        return packed


@contextmanager
def serving(script: Script, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """A real gRPC server around a script; gives its target."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[script])
    if credentials:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def proxy(answers: list[int]) -> Iterator[tuple[str, list[int]]]:
    """What speaks HTTP/2 and answers calls with one status after the other; gives its target, and the calls it got.

    With 200 comes a GetModelResponse with an image size of 7.
    """
    calls: list[int] = []
    answer = http2.message(pb.GetModelResponse(image_size=7).SerializeToString())

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.read(len(PREFACE))
            self.wfile.write(http2.frame(http2.SETTINGS, 0, 0))
            while head := self.rfile.read(9):
                kind, flags, number = head[3], head[4], int.from_bytes(head[5:], "big")
                payload = self.rfile.read(int.from_bytes(head[:3], "big"))
                if kind in (http2.SETTINGS, http2.PING) and not flags & http2.ACK:
                    self.wfile.write(http2.frame(kind, http2.ACK, 0, payload if kind == http2.PING else b""))
                elif kind == http2.HEADERS:
                    calls.append(number)
                    self._answer(number, answers.pop(0))

        def _answer(self, number: int, status: int) -> None:
            if status != 200:
                block = http2.block((":status", str(status)), ("content-type", "text/html"))
                self.wfile.write(http2.frame(http2.HEADERS, http2.END_HEADERS, number, block))
                self.wfile.write(http2.frame(http2.DATA, http2.END_STREAM, number, b"<html>no server</html>"))
                return
            block = http2.block((":status", "200"), ("content-type", "application/grpc"))
            self.wfile.write(http2.frame(http2.HEADERS, http2.END_HEADERS, number, block))
            self.wfile.write(http2.frame(http2.DATA, 0, number, answer))
            block = http2.block(("grpc-status", "0"))
            self.wfile.write(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, number, block))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", calls
        finally:
            server.shutdown()
            thread.join()


def ask(target: str, **settings: Any) -> int:
    with Client(target, **settings) as client:
        return client.model().image_size


def ask_async(target: str, **settings: Any) -> int:
    async def run() -> int:
        async with AsyncClient(target, **settings) as client:
            return (await client.model()).image_size

    return asyncio.run(run())


both = pytest.mark.parametrize("ask", [ask, ask_async])
Ask = Callable[..., int]


@both
def test_unavailable_is_tried_again(ask: Ask) -> None:
    with serving(Script(UNAVAILABLE, CANCELLED)) as target:
        assert ask(target) == 3


@both
def test_what_the_other_side_cancelled_was_unavailable(ask: Ask) -> None:
    with serving(Script(CANCELLED)) as target, pytest.raises(ClientError, match=r"UNAVAILABLE: .* cancelled the call"):
        ask(target, retries=0)


@both
def test_a_proxy_that_finds_no_server_is_asked_again(ask: Ask) -> None:
    with proxy(answers=[502, 503, 200]) as (target, calls):
        assert ask(target) == 7
        assert len(calls) == 3


@both
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_this_machine_is_not_looked_for_behind_a_proxy(ask: Ask, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(Script()) as target:
        assert ask(f"{host}:{target.rpartition(':')[2]}") == 1
    with pytest.raises(ClientError, match=r"UNAVAILABLE: .*; http_proxy in the environment sends the call through http:"
                                          "//127.0.0.1:1: is a server to be reached from there?"):  # fmt: skip
        ask("192.0.2.1:50051", retries=0)
    monkeypatch.setenv("no_proxy", "192.0.2.1")
    with pytest.raises(ClientError) as failure:
        ask("192.0.2.1:50051", retries=0, timeout=0.2)
    assert "http_proxy" not in failure.value.message


@both
def test_calls_to_several_servers_take_turns(ask: Ask) -> None:
    scripts = [Script(), Script()]
    with serving(scripts[0]) as first, serving(scripts[1]) as second:
        for _ in range(20):
            ask(f"ipv4:{first},{second}")
            if all(script.metadata for script in scripts):
                return
    raise AssertionError("a server was never asked")


@both
def test_the_last_refusal_is_what_is_raised(ask: Ask) -> None:
    script = Script(*[UNAVAILABLE] * 9)
    with serving(script) as target, pytest.raises(ClientError, match="UNAVAILABLE: not now"):
        ask(target, retries=1)
    assert len(script.metadata) == 2


@both
@pytest.mark.parametrize(
    ("status", "settings"),
    [(UNAVAILABLE, {"retries": 0}), (INVALID, {}), (OVERLOADED, {}), (OVERLOADED, {"retry_overload": 0})],
)
def test_what_is_not_tried_again(ask: Ask, status: int, settings: dict[str, Any]) -> None:
    script = Script(status, retry_after_s=0.01)
    with serving(script) as target, pytest.raises(ClientError, match="not now"):
        ask(target, **settings)
    assert len(script.metadata) == 1


@both
def test_an_overloaded_server_is_asked_again_when_it_says_so(ask: Ask) -> None:
    with serving(Script(OVERLOADED, OVERLOADED, retry_after_s=0.05)) as target:
        start = time.monotonic()
        assert ask(target, retry_overload=2) == 3
        assert time.monotonic() - start >= 0.1


@both
@pytest.mark.parametrize("retry_after_s", [0.0, 60.0], ids=["no time given", "beyond the deadline"])
def test_waiting_that_is_in_vain_is_not_begun(ask: Ask, retry_after_s: float) -> None:
    script = Script(OVERLOADED, retry_after_s=retry_after_s)
    with serving(script) as target, pytest.raises(ClientError) as refusal:
        ask(target, timeout=30, retry_overload=5)
    assert refusal.value.retry_after_s == (retry_after_s or None)
    assert len(script.metadata) == 1


@both
def test_an_error_tells_what_the_server_told(ask: Ask) -> None:
    with serving(Script(INVALID, retry_after_s=0.25)) as target, pytest.raises(ClientError) as refusal:
        ask(target)
    error = refusal.value
    assert (error.status, error.message, error.request_id) == ("INVALID_ARGUMENT", "not now", "number 7")
    assert error.violations == (FieldViolation("edits[0].strength", "is too much"),)
    assert error.retry_after_s == 0.25


def test_a_server_that_restarts_loses_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # 0.8 MB, more than gRPC would keep for another try unless it were told to.
    images = random_images(1000, seed=1)
    latents = images.reshape(1000, -1).astype(np.float32)
    answers: list[Any] = []
    stop = threading.Event()

    def work() -> None:
        with Client(f"127.0.0.1:{port}", wait_for_ready=True) as client:
            while not stop.is_set():
                answers.append(client.decode(latents))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        try:
            with server_of(tiny_bundle, tmp_path, port=port) as server:
                while len(answers) < 3:
                    assert not running.done(), running.exception()
                    time.sleep(0.01)
                server.terminate()
                assert server.wait() == 0
            with server_of(tiny_bundle, tmp_path, port=port):
                stop.set()
                running.result()
        finally:
            stop.set()
    assert all(np.array_equal(answer, images) for answer in answers)


@both
def test_a_server_that_is_not_there(ask: Ask) -> None:
    with pytest.raises(ClientError) as failure:
        ask("127.0.0.1:1", retries=0)
    assert failure.value.status == "UNAVAILABLE"
    assert failure.value.message.startswith("127.0.0.1:1: ")
    assert "; is a server running there, does it use TLS, is its certificate trusted (" in failure.value.message
    with pytest.raises(ClientError, match=r"DEADLINE_EXCEEDED: 127\.0\.0\.1:1: "):
        ask("127.0.0.1:1", timeout=0.2, wait_for_ready=True)


def test_answers_beyond_the_usual_limit_of_grpc() -> None:
    async def ask_async(target: str) -> int:
        async with AsyncClient(target, model="large") as client:
            return len((await client.model()).fingerprint)

    with serving(Script()) as target, Client(target) as client:
        assert len(client.model(model="large").fingerprint) == asyncio.run(ask_async(target)) == 5_000_000


@both
def test_the_token_and_the_request_id_travel(ask: Ask) -> None:
    script = Script()
    with serving(script) as target:
        ask(target, token="secret")
        with Client(target) as client:
            client.model(request_id="mine")
    assert script.metadata[0]["authorization"] == "Bearer secret"
    assert "authorization" not in script.metadata[1]
    assert script.metadata[1]["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token": "secret"}, "the token would travel to example.org:50051 unencrypted; use TLS, or allow it with"),
        ({"certificate": ("a", "b")}, "a client certificate needs TLS"),
        ({"retries": -1}, "retries must be from 0 to 2147483647, not -1"),
        ({"retry_overload": -1}, "retry_overload must be from 0 to 2147483647, not -1"),
        ({"target": ""}, "target must not be empty: give HOST:PORT of the server, for example localhost:50051"),
        ({"target": None}, "target must be a string, not None"),
        ({"token": 7}, "token must be a string, not the int 7"),
        ({"timeout": "5"}, "timeout must be a number, not the str '5'"),
        ({"timeout": -1}, "timeout must be above 0 and at most 1e\\+09 s, or None for none, not -1"),
        ({"priority": "high"}, "priority must be one of 'normal', .*, not the str 'high'"),
        ({"tls": __file__}, r"test_client_connection\.py is no PEM file with certificates"),
        ({"tls": True, "certificate": (__file__, __file__)}, "are no PEM certificate and its key"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as refusal:
        Client(**{"target": "example.org:50051", **settings})
    assert "secret" not in str(refusal.value)


def test_a_token_over_plaintext_may_be_allowed() -> None:
    Client("example.org:50051", token="secret", allow_plaintext_token=True).close()
    Client("example.org:50051", token="secret", tls=True).close()


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:1", True),
        ("[::1]:50051", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.8.0.1:1", True),
        ("unix:/run/engine.sock", True),
        ("unix-abstract:engine", True),
        ("unix.example.org:1", False),
        ("unixes:1", False),
        ("LocalHost:1", True),
        ("localhost.:1", True),
        ("dns:///example.org:1", False),
        ("10.0.0.1:50051", False),
        ("localhost.example.org:1", False),
        ("127.0.0.1.example.org:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
    ],
)
def test_what_is_this_machine(target: str, local: bool) -> None:
    assert is_local(target) is local


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("localhost:50051", None),
        ("example.org:1", None),
        ("[::1]:65535", None),
        ("dns:///example.org:1", None),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", None),
        ("unix:/run/engine.sock", None),
        ("unix.example.org:1", None),
        ("unix", "it has no port; give HOST:PORT, for example unix:50051"),
        ("unix:", "it has no path; give unix:PATH, for example unix:/run/dfcvae.sock"),
        ("unix://", "it has no path; give unix:PATH, for example unix:/run/dfcvae.sock"),
        ("", "it takes HOST:PORT, for example localhost:50051"),
        (":50051", "it takes HOST:PORT, for example localhost:50051"),
        ("localhost:", "it takes HOST:PORT, for example localhost:50051"),
        ("localhost", "it has no port; give HOST:PORT, for example localhost:50051"),
        ("dns:///example.org", "it has no port; give HOST:PORT, for example example.org:50051"),
        ("localhost:0", "the port must be from 1 to 65535, not 0"),
        ("localhost:65536", "the port must be from 1 to 65535, not 65536"),
        ("http://localhost:50051", "it takes HOST:PORT; leave out http://"),
        ("::1", "an IPv6 address goes in brackets: [HOST]:PORT, for example [::1]:50051"),
    ],
)
def test_what_keeps_a_target_from_being_one(target: str, fault: str | None) -> None:
    assert fault_of(target) == fault


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    own, key = folder / "own.pem", folder / "key.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=engine", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", *kind, *names, "-keyout", str(key), "-out", str(own)]
    subprocess.run(command, check=True, capture_output=True)
    return own, key


@both
def test_tls(ask: Ask, certificate: tuple[Path, Path]) -> None:
    own, key = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), own.read_bytes())])
    script = Script()
    with serving(script, credentials) as target:
        assert ask(target, tls=own, token="secret") == 1
        assert script.metadata[0]["authorization"] == "Bearer secret"
        with pytest.raises(ClientError, match="UNAVAILABLE"):
            ask(target, tls=True, retries=0)
        with pytest.raises(ClientError, match="UNAVAILABLE"):
            ask(target, retries=0)


@both
def test_mutual_tls(ask: Ask, certificate: tuple[Path, Path]) -> None:
    own, key = certificate
    pair = (key.read_bytes(), own.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], own.read_bytes(), require_client_auth=True)
    with serving(Script(), credentials) as target:
        assert ask(target, tls=str(own), certificate=certificate) == 1
        with pytest.raises(ClientError, match="UNAVAILABLE"):
            ask(target, tls=own, retries=0)


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.pem"):
        Client("127.0.0.1:1", tls=tmp_path / "no.pem")
