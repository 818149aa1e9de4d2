"""Who may connect, call, and how much: TLS, tokens and limits of a real server."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from batches import raw_batch
from gates import connected, gated_server, until
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status  # type: ignore[import-untyped]
from servers import ServerProcess, run_python, server_of
from serving.requests import stub_of
from tiny_model import IMAGE_SIZE, random_images

from engine.client import Client, ClientError
from protos import dfcvae_pb2 as pb

ANNA, BERT = "a" * 32, "b" * 32
HEALTH = health_pb2.HealthCheckRequest()


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def encode_request(count: int = 1) -> pb.EncodeRequest:
    return pb.EncodeRequest(images=raw_batch(random_images(count, seed=1)))


def refusal_of(call: Any, *arguments: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refusal:
        call(*arguments, **{"timeout": 30, **options})
    return refusal.value


def detail(error: grpc.RpcError, kind: Any) -> Any:
    """The detail of that kind that an error carries."""
    found = kind()
    assert any(entry.Unpack(found) for entry in rpc_status.from_call(error).details), f"no {kind} in {error}"
    return found


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority:
    """A certificate authority that signs certificates for 127.0.0.1."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self._new_key = new_key
        openssl("req", "-x509", *new_key, "-keyout", str(self._key), "-out", str(self.certificate),
                "-subj", f"/CN={name}", "-days", "2")  # fmt: skip

    def sign(self, name: str, subject: str = "") -> tuple[Path, Path]:
        """A new certificate and its key; with a subject of its own it has a URI beside."""
        cert, key, request = (self._folder / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        (self._folder / "extensions").write_text(
            f"subjectAltName={f'URI:spiffe://test/{name}' if subject else 'IP:127.0.0.1'}\n"
        )
        openssl(
            "req", "-new", *self._new_key, "-keyout", str(key), "-out", str(request), "-subj", subject or f"/CN={name}"
        )
        openssl("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key),
                "-CAcreateserial", "-out", str(cert), "-days", "2", "-extfile",
                str(self._folder / "extensions"))  # fmt: skip
        return cert, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def trusting(authority: Authority, pair: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
    cert, key = (path.read_bytes() for path in pair) if pair else (None, None)
    return grpc.ssl_channel_credentials(authority.certificate.read_bytes(), key, cert)


def test_tls_is_spoken_and_nothing_else(tiny_bundle: Path, tmp_path: Path, authority: Authority) -> None:
    cert, key = authority.sign("server")
    with server_of(tiny_bundle, tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        with grpc.secure_channel(server.target, trusting(authority)) as channel:
            assert stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30).image_size == IMAGE_SIZE
        stranger = Authority(tmp_path, "stranger")
        with grpc.secure_channel(server.target, trusting(stranger)) as channel:
            assert refusal_of(stub_of(channel).GetModel, pb.GetModelRequest()).code().name == "UNAVAILABLE"
        with grpc.insecure_channel(server.target) as channel:
            assert refusal_of(stub_of(channel).GetModel, pb.GetModelRequest()).code().name == "UNAVAILABLE"


def test_a_client_says_what_is_the_matter_with_a_certificate(
    tiny_bundle: Path, tmp_path: Path, authority: Authority
) -> None:
    cert, key = authority.sign("server")
    with server_of(tiny_bundle, tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        port = server.target.rpartition(":")[2]
        untrusted = r"; give the certificates of the authorities that signed .* --tls-ca FILE$"
        for target, tls, hint in (
            (server.target, True, untrusted),
            (f"localhost:{port}", authority.certificate, r"; the server's certificate is for other names: call it by"),
        ):
            with Client(target, tls=tls, retries=0) as client, pytest.raises(ClientError, match=hint):
                client.model()


def test_failed_handshakes_are_shown_to_who_asks_grpc_for_them(tiny_bundle: Path, tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path, "prime256v1")
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    with (
        server_of(tiny_bundle, tmp_path, *options, variables={"GRPC_VERBOSITY": "INFO"}) as server,
        connected(server.target) as stub,
    ):
        assert refusal_of(stub.GetModel, pb.GetModelRequest()).code().name == "UNAVAILABLE"
        server.wait_for_log("Handshake failed")


def test_mutual_tls_lets_in_who_shows_a_signed_certificate(
    tiny_bundle: Path, tmp_path: Path, authority: Authority
) -> None:
    cert, key = authority.sign("server")
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(authority.certificate)]
    with server_of(tiny_bundle, tmp_path, *options, "--log-level", "debug") as server:
        with grpc.secure_channel(server.target, trusting(authority, authority.sign("client"))) as channel:
            assert stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30).image_size == IMAGE_SIZE
        server.wait_for_log("GetModel OK for client in ")
        with grpc.secure_channel(server.target, trusting(authority, authority.sign("a", "/O=nameless"))) as channel:
            stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30)
        server.wait_for_log("GetModel OK for spiffe://test/a in ")
        with grpc.secure_channel(server.target, trusting(authority)) as channel:
            assert refusal_of(stub_of(channel).GetModel, pb.GetModelRequest()).code().name == "UNAVAILABLE"
        forger = Authority(tmp_path, "forger").sign("client")
        with grpc.secure_channel(server.target, trusting(authority, forger)) as channel:
            assert refusal_of(stub_of(channel).GetModel, pb.GetModelRequest()).code().name == "UNAVAILABLE"


def test_a_renewed_certificate_is_shown_without_a_restart(
    tiny_bundle: Path, tmp_path: Path, authority: Authority
) -> None:
    cert, key = authority.sign("server")
    with server_of(tiny_bundle, tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        with grpc.secure_channel(server.target, trusting(authority)) as channel:
            stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30)
        other = Authority(tmp_path, "other")
        for new, old in zip(other.sign("server"), (cert, key), strict=True):
            old.write_bytes(new.read_bytes())
        with grpc.secure_channel(server.target, trusting(other)) as channel:
            assert stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30).image_size == IMAGE_SIZE
        # What can't be used is not taken, and the last good one stays.
        cert.write_text("nonsense")
        with grpc.secure_channel(server.target, trusting(other)) as channel:
            assert stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30).image_size == IMAGE_SIZE
        until(lambda: "connections go on with the old certificate" in server.log)
        # Python's TLS can use this key, gRPC's can't.
        for new, old in zip(self_signed(tmp_path, "secp256k1"), (cert, key), strict=True):
            old.write_bytes(new.read_bytes())
        with grpc.secure_channel(server.target, trusting(other)) as channel:
            assert stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30).image_size == IMAGE_SIZE
        server.wait_for_log("connections go on with the old certificate", count=2)
        assert server.log.count("new certificate from") == 1


def self_signed(folder: Path, curve: str, days: int = 2) -> tuple[Path, Path]:
    """A certificate for nobody, and its key."""
    cert, key, request = (folder / f"{curve}.{kind}" for kind in ("pem", "key", "csr"))
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{curve}", "-nodes", "-keyout", str(key),
            "-out", str(request), "-subj", "/CN=self")  # fmt: skip
    openssl("x509", "-req", "-in", str(request), "-signkey", str(key), "-out", str(cert), "-days", str(days))
    return cert, key


def test_a_key_that_grpc_does_not_know_is_named_at_the_start(tiny_bundle: Path, tmp_path: Path) -> None:
    cert, key = map(str, self_signed(tmp_path, "secp256k1"))
    result = run_python(["-m", "engine", "--bundle", str(tiny_bundle), "--tls-cert", cert, "--tls-key", key], tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: gRPC can't use --tls-cert {cert} and --tls-key {key}; ")


def test_an_expired_certificate_is_in_the_log(tiny_bundle: Path, tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path, "prime256v1", days=-1)
    with server_of(tiny_bundle, tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        server.wait_for_log(f"clients refuse --tls-cert {cert}: certificate has expired")


@pytest.fixture(scope="module")
def guarded(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that asks for tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text(f"anna {ANNA}\n")
    options = ["--tokens", str(folder / "tokens"), "--log-level", "debug", "--log-format", "json"]
    with server_of(tiny_bundle, folder, *options) as server:
        yield server


def test_calls_need_a_known_token(guarded: ServerProcess) -> None:
    with connected(guarded.target) as stub:
        assert stub.GetModel(pb.GetModelRequest(), metadata=bearer(ANNA), timeout=30).image_size == IMAGE_SIZE
        for metadata in ([], bearer(BERT), [("authorization", ANNA)]):
            error = refusal_of(stub.Encode, encode_request(), metadata=metadata)
            assert error.code().name == "UNAUTHENTICATED"
            assert detail(error, error_details_pb2.ErrorInfo).reason == "UNAUTHENTICATED"
            error = refusal_of(lambda **options: list(stub.EditStream(iter(()), **options)), metadata=metadata)
            assert error.code().name == "UNAUTHENTICATED"


def test_health_needs_no_token_and_reflection_does(guarded: ServerProcess) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(guarded.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(HEALTH, timeout=30).status == health_pb2.HealthCheckResponse.SERVING
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        error = refusal_of(lambda **options: list(reflect(iter([request]), **options)))
        assert error.code().name == "UNAUTHENTICATED"
        (answer,) = reflect(iter([request]), metadata=bearer(ANNA), timeout=30)
        names = {service.name for service in answer.list_services_response.service}
        assert {"dfcvae.v1.LatentEngine", "grpc.health.v1.Health"} <= names


def test_tokens_are_never_logged(guarded: ServerProcess) -> None:
    with connected(guarded.target) as stub:
        stub.GetModel(pb.GetModelRequest(), metadata=bearer(ANNA), timeout=30)
        refusal_of(stub.GetModel, pb.GetModelRequest(), metadata=bearer(BERT))
    log = guarded.wait_for_log("UNAUTHENTICATED")
    assert '"client": "anna"' in log
    assert ANNA not in log
    assert BERT not in log


def test_hanging_up_reads_the_tokens_again(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"anna {ANNA}\n")
    with (
        server_of(tiny_bundle, tmp_path, "--tokens", str(tmp_path / "tokens")) as server,
        connected(server.target) as stub,
    ):
        (tmp_path / "tokens").write_text(f"bert {BERT}\n")
        stub.GetModel(pb.GetModelRequest(), metadata=bearer(ANNA), timeout=30)
        server.hang_up()
        server.wait_for_log("1 tokens from")
        stub.GetModel(pb.GetModelRequest(), metadata=bearer(BERT), timeout=30)
        error = refusal_of(stub.GetModel, pb.GetModelRequest(), metadata=bearer(ANNA))
        assert error.code().name == "UNAUTHENTICATED"


def test_each_client_has_its_own_rate(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"anna {ANNA}\nbert {BERT}\n")
    options = ["--tokens", str(tmp_path / "tokens"), "--max-images-per-second", "0.01", "--burst", "10"]
    with server_of(tiny_bundle, tmp_path, *options) as server, connected(server.target) as stub:
        stub.Encode(encode_request(9), metadata=bearer(ANNA), timeout=30)
        error = refusal_of(stub.Encode, encode_request(3), metadata=bearer(ANNA))
        assert error.code().name == "RESOURCE_EXHAUSTED"
        assert "anna may send 0.01 images a second" in error.details()
        assert detail(error, error_details_pb2.ErrorInfo).reason == "RATE_LIMITED"
        # 2 images at 0.01 a second, less what came in meanwhile.
        assert 150 < detail(error, error_details_pb2.RetryInfo).retry_delay.seconds <= 200
        stub.Encode(encode_request(10), metadata=bearer(BERT), timeout=30)
        model = stub.GetModel(pb.GetModelRequest(), metadata=bearer(ANNA), timeout=30)
        assert model.limits.max_images_per_second == pytest.approx(0.01)


def test_what_there_was_no_room_for_costs_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--max-images-per-second", "0.01", "--burst", "10", "--max-queue", "4", "--metrics-port", "0"]
    with gated_server(tiny_bundle, tmp_path, *options) as gate, connected(gate.server.target) as stub:
        gate.close()
        calls = [stub.Encode.future(encode_request(), timeout=60)]
        until(lambda: len(gate.batches()) == 1)
        calls.append(stub.Encode.future(encode_request(4), timeout=60))
        until(lambda: gate.server.metric("dfcvae_queue_images", model="default", graph="encode") == 4)
        for _ in range(4):
            error = refusal_of(stub.Encode, encode_request(4))
            assert detail(error, error_details_pb2.ErrorInfo).reason == "OVERLOADED"
        gate.open()
        assert [call.result().mu.count for call in calls] == [1, 4]
        assert gate.server.metric("dfcvae_images_total", method="Encode") == 5
        assert stub.Encode(encode_request(4)).mu.count == 4


def test_without_tls_the_log_says_who_can_connect(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path) as server:
        until(lambda: "no TLS: only this machine can connect" in server.log)
    with server_of(tiny_bundle, tmp_path, "--host", "0.0.0.0", "--insecure") as server:
        until(lambda: "WARNING engine.server: no TLS (--insecure): whoever is on the way can read" in server.log)


def test_a_stream_ends_when_its_token_is_withdrawn(tiny_bundle: Path, tmp_path: Path) -> None:
    tokens, turns = tmp_path / "tokens", [threading.Semaphore(1), threading.Semaphore(1)]
    tokens.write_text(f"anna {ANNA}\nbert {BERT}\n")

    def requests(turn: threading.Semaphore) -> Iterator[pb.EditStreamRequest]:
        while turn.acquire():
            yield pb.EditStreamRequest(images=encode_request().images)

    with (
        server_of(tiny_bundle, tmp_path, "--tokens", str(tokens)) as server,
        connected(server.target) as stub,
    ):
        stays, ends = (
            stub.EditStream(requests(turn), metadata=bearer(token), timeout=60)
            for turn, token in zip(turns, (ANNA, BERT), strict=True)
        )
        assert next(stays).WhichOneof("outcome") == next(ends).WhichOneof("outcome") == "edited"
        tokens.write_text(f"anna {ANNA}\n")
        server.hang_up()
        assert refusal_of(lambda **_: list(ends)).code().name == "UNAUTHENTICATED", "without another message"
        turns[0].release()
        assert next(stays).WhichOneof("outcome") == "edited"
        turns[1].release()
        stays.cancel()


def test_a_connection_may_have_so_many_calls_and_no_more(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--max-concurrent-streams", "1", "--metrics-port", "0"]
    with (
        gated_server(tiny_bundle, tmp_path, *options) as gate,
        connected(gate.server.target) as stub,
    ):
        assert stub.GetModel(pb.GetModelRequest(), timeout=30).limits.max_concurrent_streams == 1
        gate.close()
        first = stub.Encode.future(encode_request(), timeout=60)
        until(lambda: len(gate.batches()) == 1)
        # The second doesn't leave the client before the first has ended.
        assert refusal_of(stub.Encode.future(encode_request(), timeout=1).result).code().name == "DEADLINE_EXCEEDED"
        assert gate.server.metric("dfcvae_received_messages_total", method="Encode") == 1
        gate.open()
        assert first.result().mu.count == 1
        assert stub.Encode(encode_request(), timeout=30).mu.count == 1


def test_who_pings_too_often_is_cut_off(tiny_bundle: Path, tmp_path: Path) -> None:
    eager = [("grpc.keepalive_time_ms", 50), ("grpc.keepalive_permit_without_calls", 1)]
    with server_of(tiny_bundle, tmp_path, "--min-ping-interval-s", "3600") as server:
        with grpc.insecure_channel(server.target, [*eager, ("grpc.http2.max_pings_without_data", 0)]) as channel:
            end = threading.Event()
            stream = stub_of(channel).EditStream(iter(end.wait, True), timeout=30)
            assert refusal_of(lambda **_: list(stream)).code().name == "UNAVAILABLE"
            end.set()
        with grpc.insecure_channel(server.target) as channel:
            assert stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30).image_size == IMAGE_SIZE


def test_connections_end_after_their_time(tiny_bundle: Path, tmp_path: Path) -> None:
    states: list[grpc.ChannelConnectivity] = []
    with (
        server_of(tiny_bundle, tmp_path, "--max-connection-age-s", "0.3") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        channel.subscribe(states.append)
        stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30)
        until(lambda: states[-1:] == [grpc.ChannelConnectivity.IDLE] and grpc.ChannelConnectivity.READY in states)
        assert stub_of(channel).GetModel(pb.GetModelRequest(), timeout=30).image_size == IMAGE_SIZE
