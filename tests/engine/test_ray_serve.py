"""A replica behind an ingress as Ray's: its handlers, status and context are as Ray Serve's gRPC proxy has them.

Where Ray is installed, the last test has Ray itself.
"""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers import ROOT
from tiny_model import ATTRIBUTES, images_of, latents_of, random_images, tiny_directions

from engine.client import Client, ClientError
from engine.config import load_config
from engine.errors import StartupError
from engine.ray_serve import __main__ as ray_serve
from engine.ray_serve import ingress
from engine.ray_serve.__main__ import ClusterConfig, application
from engine.ray_serve.replica import Replica


class Context:
    """Of a call, as a replica gets it."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.code: grpc.StatusCode | None = None
        self.details: str | None = None
        self.trailing: list[tuple[str, Any]] = [("request_id", "an-id")]

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [*self._context.invocation_metadata()]

    def peer(self) -> str:
        return str(self._context.peer())

    def trailing_metadata(self) -> list[tuple[str, Any]]:
        return self.trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, Any]]) -> None:
        assert isinstance(metadata, list)  # Ray puts its own before it
        self.trailing = [("request_id", "an-id"), *metadata]

    def tell(self, context: Any) -> None:
        """Ray's ingress does so with what came back from the replica."""
        if self.code:
            context.set_code(self.code)
        if self.details:
            context.set_details(self.details)
        context.set_trailing_metadata(tuple(self.trailing))


class Kind(str, Enum):
    UNARY, WATCH, STREAM, UPLOAD = "unary_unary", "unary_stream", "stream_stream", "stream_unary"


class Ingress:
    """What Ray's server is to the functions that add services, with one replica in this process.

    Attributes:
        losses: How many calls the replica doesn't survive; of a stream it gives the first answer.
    """

    def __init__(self, replica: Replica, server: Any) -> None:
        self._replica, self._server, self.losses = replica, server, 0

    def service_handler_factory(self, *, service_method: str, streaming_type: Kind) -> Any:
        method: Any = getattr(self._replica, service_method.rpartition("/")[2], None)

        async def unary(request: Any, context: Any) -> bytes:
            if self.losses:
                self.losses -= 1
                context.set_code(grpc.StatusCode.INTERNAL)
                context.set_details("The actor died unexpectedly before finishing this task.")
                return b""
            own = Context(context)
            response: bytes = (await method(request, own)).SerializeToString()
            own.tell(context)
            return response

        async def stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
            own = Context(context)
            async for response in method(requests, own):
                own.tell(context)
                yield response.SerializeToString()
                if self.losses:
                    self.losses -= 1
                    context.set_code(grpc.StatusCode.INTERNAL)
                    context.set_details("The actor died unexpectedly before finishing this task.")
                    return

        return unary if streaming_type is Kind.UNARY else stream

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        (generic,) = handlers
        generic._method_handlers = {
            path: handler._replace(
                response_serializer=None,
                **{kind.value: self.service_handler_factory(service_method=path, streaming_type=kind) for kind in Kind},
            )
            for path, handler in generic._method_handlers.items()
        }
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, *_: Any) -> None: ...


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[str, Ingress]]:
    """A replica behind an ingress, on an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[Any, int, Ingress]:
        replica = Replica.__new__(Replica)
        await replica.__init__(load_config([f"--bundle={bundle}", "--threads=1"], {}))  # type: ignore[misc]
        server = grpc.aio.server()
        door = Ingress(replica, server)
        ingress.add_latent_engine(Mock(), door)
        ingress.add_health(Mock(), door)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port, door

    try:
        server, port, door = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
        yield f"127.0.0.1:{port}", door
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture(scope="module")
def place(tiny_bundle: Path) -> Iterator[tuple[str, Ingress]]:
    with serving(tiny_bundle) as found:
        yield found


def edited(images: Any, strength: float = 1.0) -> Any:
    return images_of(latents_of(images) + strength * tiny_directions().vectors[0])


def test_every_method_answers_as_the_server_does(place: tuple[str, Ingress]) -> None:
    images = random_images(3, seed=1)
    with Client(place[0]) as client:
        assert client.health() == "SERVING"
        assert [attribute.name for attribute in client.model().attributes] == list(ATTRIBUTES)
        np.testing.assert_array_equal(client.edit(images, {ATTRIBUTES[0]: 1.0}), edited(images))
        mu = client.encode(images).mu
        np.testing.assert_array_equal(client.decode(mu), images_of(latents_of(images)))
        assert (
            client.sample(2, seed=3).shape
            == client.interpolate(images[:1], images[1:2], 2).reshape(2, *images.shape[1:]).shape
        )


def test_clients_that_watch_health_are_told(place: tuple[str, Ingress]) -> None:
    images = random_images(1, seed=6)
    with Client(f"ipv4:{place[0]},{place[0]}") as client:
        np.testing.assert_array_equal(client.edit(images, {ATTRIBUTES[0]: 1.0}), edited(images))
    with grpc.insecure_channel(place[0]) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_streams_pass(place: tuple[str, Ingress]) -> None:
    images = random_images(1, seed=2)
    with Client(place[0]) as client, client.stream() as slider:
        np.testing.assert_array_equal(slider.edit(images, {ATTRIBUTES[0]: 1.0}), edited(images))
        np.testing.assert_array_equal(slider.edit(None, {ATTRIBUTES[0]: 2.0}), edited(images, 2.0))


def test_a_stream_whose_replica_has_ended_is_to_be_opened_again(place: tuple[str, Ingress]) -> None:
    target, door = place
    images = random_images(1, seed=2)
    with Client(target) as client:
        door.losses = 1
        with client.stream() as slider:
            np.testing.assert_array_equal(slider.edit(images, {ATTRIBUTES[0]: 1.0}), edited(images))
            with pytest.raises(ClientError, match="ended before it answered; open the stream again") as lost:
                slider.edit(None, {ATTRIBUTES[0]: 2.0})
        assert lost.value.status == "UNAVAILABLE"
        test_streams_pass(place)


def test_a_failure_within_a_stream_keeps_its_secrets(
    place: tuple[str, Ingress], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr("engine.service.latent_engine.EditStream", fail)
    with Client(place[0]) as client, client.stream() as slider, pytest.raises(ClientError) as failed:
        slider.edit(random_images(1, seed=2), {ATTRIBUTES[0]: 1.0})
    assert failed.value.status == "INTERNAL"
    assert "secret" not in str(failed.value)


def test_refusals_keep_status_and_sentence(place: tuple[str, Ingress]) -> None:
    with Client(place[0]) as client:
        with pytest.raises(ClientError, match="Grin") as refused:
            client.edit(random_images(1, seed=0), {"Grin": 1.0})
        assert refused.value.status == "NOT_FOUND"
        assert refused.value.request_id, "Ray's own"
        with pytest.raises(ClientError) as refused:
            client.edit(random_images(1, seed=0), {"Grin": 1.0}, request_id="mine")
        assert refused.value.request_id == "mine"


def test_another_replica_answers_where_one_has_ended(place: tuple[str, Ingress]) -> None:
    target, door = place
    images = random_images(1, seed=4)
    door.losses = 2
    with Client(target) as client:
        np.testing.assert_array_equal(client.edit(images, {ATTRIBUTES[0]: 1.0}), edited(images))
    assert door.losses == 0


def test_without_replicas_clients_are_told_to_send_again(place: tuple[str, Ingress]) -> None:
    target, door = place
    door.losses = 10**6
    try:
        with Client(target) as client, pytest.raises(ClientError, match="ended before it answered") as refused:
            client.edit(random_images(1, seed=4), {ATTRIBUTES[0]: 1.0})
    finally:
        door.losses = 0
    assert refused.value.status == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"cores": 0}, "--cores 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "--max-replicas 2"),
        ({"max_replicas_per_node": 0}, "--max-replicas-per-node must be 1 to 100, not 0"),
        ({"waiting": 0.5}, "--waiting must be 1 or more, not 0.5"),
        ({"config": Path("nothing.toml")}, "nothing.toml can't be read"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StartupError, match=sentence):
        ClusterConfig(bundle="bundle", **values).server()


def test_settings_of_a_replica() -> None:
    server = ClusterConfig(bundle="bundle", cores=3).server()
    assert (server.bundles, server.threads) == ({"default": Path.cwd() / "bundle"}, 3), "not of Ray's folder"
    with pytest.raises(StartupError, match=r"no bundle folder at .*absent; build it with"):
        application(ClusterConfig(bundle="absent"))


def test_no_node_need_have_every_replica(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Mock()
    monkeypatch.setattr(ray_serve, "_imported", lambda name: ray)
    application(ClusterConfig(bundle=str(tiny_bundle), max_replicas=4, max_replicas_per_node=1))
    assert ray.deployment.call_args.kwargs["max_replicas_per_node"] == 1


def test_what_ray_refuses_is_one_line(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = Mock()
    ray.start.side_effect = RuntimeError(
        "ray::ProxyActor.ready()\n  File ...\nRuntimeError: Failed to bind to [::]:1\n"
    )
    monkeypatch.setattr(ray_serve, "_imported", lambda name: ray)
    monkeypatch.setattr(sys, "argv", ["ray_serve", "--bundle", str(tiny_bundle)])
    assert ray_serve.main() == 2
    assert capsys.readouterr().err == "error: RuntimeError: Failed to bind to [::]:1\n"


@pytest.mark.timeout(600)
def test_ray_itself(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "log").open("w")
    command = [
        sys.executable,
        "-m",
        "engine.ray_serve",
        "--bundle",
        str(tiny_bundle),
        "--cores",
        "1",
        "--port",
        str(port),
    ]
    # A cluster that has ended, which a command without --address must not look for.
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "127.0.0.1:1"}
    with subprocess.Popen(
        [*command, "--min-replicas", "2", "--max-replicas", "2"],
        cwd=tmp_path,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("serving"), (tmp_path / "log").read_text()
            images = random_images(2, seed=5)
            with Client(f"127.0.0.1:{port}") as client:
                np.testing.assert_array_equal(client.edit(images, {ATTRIBUTES[0]: 1.0}), edited(images))
                test_refusals_keep_status_and_sentence((f"127.0.0.1:{port}", None))  # type: ignore[arg-type]
                test_streams_pass((f"127.0.0.1:{port}", None))  # type: ignore[arg-type]
        finally:
            process.terminate()
            code = process.wait(120)
    assert code == 0, (tmp_path / "log").read_text()
