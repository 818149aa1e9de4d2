"""The service in this process, to see what its event loop does meanwhile."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partialmethod
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import numpy as np
import pytest
from batches import raw_batch
from gated import Notes
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers import ROOT
from tiny_model import LATENT_DIM, images_of, latents_of, random_images, tiny_directions

from engine.backends import open_backend
from engine.batching.batcher import BatchObserver
from engine.config import ServerConfig
from engine.errors import Overloaded
from engine.latents import Gaussian, walks
from engine.models.repository import ModelRepository
from engine.service.interceptor import CallInterceptor
from engine.service.latent_engine import SERVICE, LatentEngine
from engine.service.request_scope import Call
from engine.telemetry.metrics import Metrics, QueueFigures
from engine.transport import Server
from protos import dfcvae_pb2 as pb


def serve(
    bundle: Path,
    scenario: Callable[[LatentEngine], Awaitable[None]],
    names: Sequence[str] = ("tiny",),
    observer: BatchObserver | None = None,
    **settings: Any,
) -> None:
    async def whole() -> None:
        config = ServerConfig(bundle=tuple(f"{name}={bundle}" for name in names), **settings)
        repository = ModelRepository(config, open_backend, lambda *_: observer or Notes())
        await repository.open()
        await scenario(LatentEngine(repository, config))
        await repository.close()

    asyncio.run(whole())


class HoldUp:
    """A computation that goes on only when the event loop says so; where it is on the loop itself, it fails."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.began = threading.Event()
        self.go = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        self.began.set()
        assert self.go.wait(60), "the event loop is held up"
        return self._function(*arguments)


END = pb.WalkEnd(latents=pb.LatentBatch(count=1, dim=LATENT_DIM, data=np.zeros(LATENT_DIM, "<f4").tobytes()))


@pytest.mark.parametrize("result", [pb.EDIT_RESULT_UNSPECIFIED, pb.EDIT_RESULT_LATENTS])
@pytest.mark.parametrize("method", ["Sample", "Interpolate"])
def test_others_are_answered_while_much_is_sampled(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, method: str, result: Any
) -> None:
    if method == "Sample":
        slow = HoldUp(Gaussian.draw)
        monkeypatch.setattr(Gaussian, "draw", partialmethod(slow))
        request: Any = pb.SampleRequest(count=1024, result=result)
    else:
        slow = HoldUp(walks._on_line)
        monkeypatch.setattr(walks, "_on_line", slow)
        request = pb.InterpolateRequest(start=END, end=END, steps=1024, result=result)

    async def scenario(engine: LatentEngine) -> None:
        call = asyncio.ensure_future(getattr(engine, method)(request, Call()))
        await asyncio.to_thread(slow.began.wait)
        assert (await engine.GetModel(pb.GetModelRequest(), Call())).latent_dim == LATENT_DIM
        slow.go.set()
        await call

    serve(tiny_bundle, scenario)


@pytest.mark.parametrize(("names", "known"), [(("one",), True), (("one", "other"), False)])
def test_a_full_queue_is_told_of_to_the_door_only_where_there_is_no_other_model(
    tiny_bundle: Path, names: tuple[str, ...], known: bool
) -> None:
    latents = pb.LatentBatch(count=2, dim=LATENT_DIM, data=np.zeros((2, LATENT_DIM), "<f4").tobytes())

    async def scenario(engine: LatentEngine) -> None:
        calls = [engine.Decode(pb.DecodeRequest(latents=latents), Call()) for _ in range(16)]
        refused = [end for end in await asyncio.gather(*calls, return_exceptions=True) if isinstance(end, Overloaded)]
        assert refused
        assert {error.recheck is not None for error in refused} == {known}

    serve(tiny_bundle, scenario, names, max_queue=16)


def test_a_service_with_a_kind_of_method_that_no_limit_covers_is_not_registered() -> None:
    async def register() -> None:
        calls = CallInterceptor(Metrics(), ServerConfig())
        with pytest.raises(NotImplementedError, match="Watch is neither unary nor a stream in both directions"):
            calls.register(Server(), health_pb2.DESCRIPTOR.services_by_name["Health"], health_pb2_grpc.HealthServicer())

    asyncio.run(register())


class Batches(QueueFigures):
    """Requests in each batch."""

    def __init__(self) -> None:
        super().__init__(Metrics(), "tiny", "edit")
        self.requests: list[int] = []

    def batch(self, items: int, waits: Sequence[float], seconds: float) -> None:
        self.requests.append(len(waits))


def test_each_request_of_a_batch_is_moved_by_its_own_edits(tiny_bundle: Path) -> None:
    along = np.linspace(-9, 9, LATENT_DIM, dtype="<f4")
    asked: list[tuple[list[tuple[Any, float]], list[str]]] = [
        ([("Smiling", 1.5)], []),
        ([("Smiling", -0.25), (along, 0.5)], ["Male"]),
        ([("Eyeglasses", 1e6), ("Male", -1.0)], []),
        ([("Male", 0.0)], ["Smiling"]),
        ([(along, -2.0)], ["Smiling", "Eyeglasses", "Male"]),
    ]
    images = [random_images(1 + index, seed=index) for index in range(len(asked))]

    def request(pixels: Any, edits: list[tuple[Any, float]], keep: list[str]) -> pb.EditRequest:
        targets = [
            pb.Edit(attribute=target, strength=strength)
            if isinstance(target, str)
            else pb.Edit(direction=target.tobytes(), strength=strength)
            for target, strength in edits
        ]
        batch = raw_batch(pixels)
        return pb.EditRequest(images=batch, edits=targets, keep=keep, result=pb.EDIT_RESULT_IMAGES_AND_LATENTS)

    async def scenario(engine: LatentEngine) -> None:
        calls = [engine.Edit(request(one, *what), Call()) for one, what in zip(images, asked, strict=True)]
        for answer, one, what in zip(await asyncio.gather(*calls), images, asked, strict=True):
            found = pb.EditResponse.FromString(answer.SerializeToString())
            expected = latents_of(one) + tiny_directions().move(*what).step
            np.testing.assert_array_equal(np.frombuffer(found.latents.data, "<f4"), expected.ravel())
            assert found.images.raw.data == images_of(expected).tobytes()

    batches = Batches()
    serve(tiny_bundle, scenario, observer=batches, max_delay_ms=200)
    assert max(batches.requests) > 1


def test_an_edit_passes_few_files(tiny_bundle: Path) -> None:
    request = pb.EditRequest(
        images=raw_batch(random_images(32, seed=1)), edits=[pb.Edit(attribute="Smiling", strength=1)]
    ).SerializeToString()
    files: set[str] = set()
    passed: set[str] = set()

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        files.add(frame.f_code.co_filename)

    async def scenario(engine: LatentEngine) -> None:
        calls = CallInterceptor(Metrics(), ServerConfig())
        server = Server([("grpc.so_reuseport", 0)], calls.admit)
        calls.register(server, SERVICE, engine)
        port = server.listen("127.0.0.1:0")
        await server.start()
        calls.admission.open()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            edit = channel.unary_unary(f"/{SERVICE.full_name}/Edit")
            await edit(request)
            files.clear()
            sys.setprofile(watch)
            await edit(request)
            sys.setprofile(None)
            passed.update(files)
        await server.stop(0)

    threading.setprofile(watch)  # of the threads to come: the one that waits for core, and those that compute
    try:
        serve(tiny_bundle, scenario)
    finally:
        threading.setprofile(None)
        sys.setprofile(None)
    ours = {name for name in passed if name.startswith(str(ROOT / "engine"))}
    assert 10 < len(ours) <= 15, ours
