"""Models by name, and their replacement: with real graphs, and a bundle folder that changes underneath."""

import asyncio
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import smile_more, write_tiny_bundle
from gated import Notes
from tiny_model import images_of, latents_of, random_images, tiny_directions

from engine.arrays import Bytes, Floats
from engine.backends import Backend, open_backend
from engine.batching.batcher import RequestContext
from engine.bundle import Bundle
from engine.config import ServerConfig
from engine.errors import BundleError, UnknownModel
from engine.latents import Conditions
from engine.models.model import Model
from engine.models.repository import ModelRepository, Opener


def run(
    scenario: Callable[[ModelRepository], Awaitable[None]],
    told: list[tuple[str, bool]] | None = None,
    opener: Opener = open_backend,
    **bundles: Path,
) -> None:
    async def whole() -> None:
        taken = [] if told is None else told
        config = ServerConfig(bundle=tuple(f"{name}={path}" for name, path in bundles.items()))
        repository = ModelRepository(config, opener, lambda *_: Notes(), lambda name, good: taken.append((name, good)))
        try:
            await repository.open()
        except BundleError:
            await repository.close()
            raise
        await repository.warm_up()
        await scenario(repository)
        await repository.close()

    asyncio.run(whole())


async def smile(model: Model) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    images = random_images(3, seed=1) // 2
    with model.lease():
        move = model.bundle.directions.move([("Smiling", 1.0)])
        edited, mu, _ = await model.edit(images, move, Conditions(), RequestContext())
    np.testing.assert_array_equal(mu, latents_of(images))
    assert edited is not None
    return edited


async def gone(what: weakref.ref[Any]) -> None:
    """Waits until something is freed (or else for the test's time limit); a thread may have used it last."""
    while what() is not None:
        await asyncio.sleep(0.01)


def expected(factor: float) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return images_of(latents_of(random_images(3, seed=1) // 2) + np.float32(factor) * tiny_directions()["Smiling"])


def test_a_bundle_whose_images_fit_no_message_is_refused_before_it_is_compiled(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "one")

    def opener(_: Bundle) -> Backend:
        raise AssertionError

    async def scenario() -> None:
        config = ServerConfig(bundle=(str(bundle),), max_message_bytes=191)
        await ModelRepository(config, opener, lambda *_: Notes()).open()

    with pytest.raises(BundleError, match="takes 192 bytes, and --max-message-bytes is 191; raise it to hold some"):
        asyncio.run(scenario())


def test_models_are_found_by_name_and_the_first_is_the_default(tmp_path: Path) -> None:
    one, two = (write_tiny_bundle(tmp_path / name) for name in ("one", "two"))
    smile_more(two, 2)

    async def scenario(repository: ModelRepository) -> None:
        assert repository.names == ("faces", "cats")
        assert repository.get("") is repository.get("faces")
        np.testing.assert_array_equal(await smile(repository.get("faces")), expected(1))
        np.testing.assert_array_equal(await smile(repository.get("cats")), expected(2))
        with pytest.raises(UnknownModel, match="no model 'dogs' is served here; there is: faces, cats"):
            repository.get("dogs")
        for name in ("faces", ""):
            fingerprint = repository.get("faces").fingerprint
            assert repository.get(f"{name}@{fingerprint}") is repository.get("faces")
        with pytest.raises(UnknownModel, match=f"the bundle of model cats is '.*' here, not '{fingerprint}'"):
            repository.get(f"cats@{fingerprint}")

    run(scenario, faces=one, cats=two)


def test_a_changed_bundle_takes_over_and_requests_on_the_way_end_with_the_old_one(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    told: list[tuple[str, bool]] = []

    async def scenario(repository: ModelRepository) -> None:
        old = repository.get("")
        await repository.reload()
        assert repository.get("") is old, "nothing has changed"
        smile_more(bundle, 3)
        with old.lease():
            await repository.reload()
            assert repository.get("") is not old
            np.testing.assert_array_equal(await smile(repository.get("")), expected(3))
            np.testing.assert_array_equal(await smile(old), expected(1))
        assert repository.get("").fingerprint != old.fingerprint

    run(scenario, told, faces=bundle)
    assert told == [("faces", True)]


def test_a_bundle_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    told: list[tuple[str, bool]] = []
    factors = iter([0, 4, 0])  # of the bundle that comes while one is opened; 0: none does

    def open_slowly(read: Bundle) -> Backend:
        if factor := next(factors):
            smile_more(bundle, factor)
        return open_backend(read)

    async def scenario(repository: ModelRepository) -> None:
        old = repository.get("")
        smile_more(bundle, 3)
        await repository.reload()
        assert repository.get("") is old
        await repository.reload()
        np.testing.assert_array_equal(await smile(repository.get("")), expected(4))

    run(scenario, told, open_slowly, faces=bundle)
    assert told == [("faces", False), ("faces", True)]


def test_the_graphs_of_a_model_that_has_retired_are_gone(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")

    async def scenario(repository: ModelRepository) -> None:
        old = weakref.ref(repository.get("").backend)
        smile_more(bundle, 3)
        await repository.reload()
        await gone(old)

    run(scenario, faces=bundle)


@pytest.mark.parametrize("harm", ["torn graph", "no manifest", "graph of another size"])
def test_a_bad_bundle_is_refused_and_the_old_one_goes_on(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    told: list[tuple[str, bool]] = []

    async def scenario(repository: ModelRepository) -> None:
        old = repository.get("")
        if harm == "torn graph":
            smile_more(bundle, 2)
            (bundle / "decoder.onnx").write_bytes(b"torn")
        elif harm == "no manifest":
            (bundle / "manifest.json").unlink()
        else:
            # It opens, and only its first call shows that the sizes are wrong.
            manifest = (bundle / "manifest.json").read_text()
            (bundle / "manifest.json").write_text(manifest.replace('"image_size": 8', '"image_size": 16'))
        await repository.reload()
        assert repository.get("") is old
        np.testing.assert_array_equal(await smile(old), expected(1))

    run(scenario, told, faces=bundle)
    assert told == [("faces", False)]
    assert "the old one stays" in caplog.text


class SlowThread(Future[None]):
    """Of a job whose thread goes on long after whoever waits for it has heard of its error."""

    def set_exception(self, exception: BaseException | None) -> None:
        super().set_exception(exception)
        time.sleep(0.2)


def test_a_backend_is_freed_with_its_model_and_when_its_bundle_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.process.threads.Future", SlowThread)
    bundle = write_tiny_bundle(tmp_path / "bundle")

    class Closing(Backend):
        def __init__(self, inner: Backend) -> None:
            self._inner = inner
            self.number = len(opened)
            opened.append(weakref.ref(self))

        def encode(self, images: Bytes) -> tuple[Floats, Floats]:
            return self._inner.encode(images)

        def decode(self, latents: Floats) -> Bytes:
            return self._inner.decode(latents)

        def close(self) -> None:
            closed.append(self.number)

    opened: list[weakref.ref[Closing]] = []
    closed: list[int] = []

    async def scenario(repository: ModelRepository) -> None:
        manifest = (bundle / "manifest.json").read_text()
        (bundle / "manifest.json").write_text(manifest.replace('"image_size": 8', '"image_size": 16'))
        await repository.reload()
        assert len(opened) == 2
        await gone(opened[1])
        assert closed == [1]
        np.testing.assert_array_equal(await smile(repository.get("")), expected(1))

    run(scenario, opener=lambda bundle: Closing(open_backend(bundle)), faces=bundle)
    assert closed == [1, 0]


def test_nobody_waits_for_a_runtime_that_takes_long_to_free_its_graphs(tmp_path: Path) -> None:
    bundle, freed = write_tiny_bundle(tmp_path / "bundle"), threading.Event()

    class Slow(Backend):
        def __init__(self, inner: Backend) -> None:
            self.encode, self.decode = inner.encode, inner.decode  # type: ignore[method-assign]

        def encode(self, images: Bytes) -> tuple[Floats, Floats]:
            raise NotImplementedError

        def decode(self, latents: Floats) -> Bytes:
            raise NotImplementedError

        def __del__(self) -> None:
            freed.wait()

    async def scenario(repository: ModelRepository) -> None:
        old = repository.get("")
        smile_more(bundle, 3)
        await repository.reload()
        while hasattr(old, "backend"):
            await asyncio.sleep(0.01)
        np.testing.assert_array_equal(await smile(repository.get("")), expected(3))

    run(scenario, opener=lambda bundle: Slow(open_backend(bundle)), faces=bundle)
    freed.set()


def test_a_followed_folder_is_reloaded_when_it_changes_and_only_then(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    told: list[tuple[str, bool]] = []

    async def scenario(repository: ModelRepository) -> None:
        old = repository.get("")
        following = asyncio.get_running_loop().create_task(repository.watch_for_changes(0.01))
        smile_more(bundle, 2)
        while repository.get("") is old:
            await asyncio.sleep(0.01)
        np.testing.assert_array_equal(await smile(repository.get("")), expected(2))
        (bundle / "manifest.json").write_text("{}")
        while len(told) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        following.cancel()

    run(scenario, told, faces=bundle)
    assert told == [("faces", True), ("faces", False)], "a bad bundle is tried once, not again and again"


def test_a_bundle_that_cannot_be_opened_at_the_start_is_an_error(tmp_path: Path) -> None:
    async def nothing(_: ModelRepository) -> None:
        raise AssertionError

    with pytest.raises(BundleError, match="no bundle folder"):
        run(nothing, faces=write_tiny_bundle(tmp_path / "bundle"), cats=tmp_path / "missing")
