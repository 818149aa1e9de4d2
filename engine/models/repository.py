"""The models that are served, by name, and how one is replaced without a pause."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from engine.backends import Backend, warmup_calls
from engine.batching.batcher import BatchObserver
from engine.batching.scheduler import Scheduler
from engine.bundle import MANIFEST, Bundle, sha256_of
from engine.config import ServerConfig
from engine.errors import BundleError, EngineError, UnknownModel, release_frames
from engine.images import PixelBudget
from engine.models.model import Model
from engine.process.files import version_of
from engine.process.threads import give_way, in_thread

logger = logging.getLogger(__name__)

Opener = Callable[[Bundle], Backend]
FileVersions = frozenset[tuple[str, tuple[int, int, int] | None]]


class ModelRepository:
    """The models of a configuration, by name. Construct it inside a running event loop, and `open` it.

    `observer` gives what watches a queue, by model and graph; `reloaded` is told (model, whether it was taken) of every
    new bundle.
    """

    def __init__(
        self,
        config: ServerConfig,
        opener: Opener,
        observer: Callable[[str, str], BatchObserver],
        reloaded: Callable[[str, bool], None] = lambda model, taken: None,
    ) -> None:
        self._config = config
        self._bundles = config.bundles
        self.names = tuple(self._bundles)
        self._opener = opener
        self._observer = observer
        self._reloaded = reloaded
        self._pixels = PixelBudget(config.max_pixels_in_flight)
        self._scheduler = Scheduler()
        self._models: dict[str, Model] = {}
        self._versions: dict[str, FileVersions | None] = {}
        self._loading = asyncio.Lock()
        self._ending: dict[asyncio.Task[None], str] = {}  # models that answer what they have accepted, by their end

    async def open(self) -> None:
        """Opens all bundles; they are served from then on, and `warm_up` makes their first calls.

        Raises:
            StartupError: a bundle can't be used; `close` ends what was opened.
        """
        for name, path in self._bundles.items():
            self._versions[name] = _file_versions(path)
            self._models[name] = await self._open(name)

    def get(self, name: str) -> Model:
        """The model of that name; the default one for "". NAME@FINGERPRINT is of no other bundle than that.

        Raises:
            UnknownModel: there is none.
        """
        known, at, fingerprint = name.partition("@")
        model = self._models.get(known or self.names[0])
        if model is None:
            raise UnknownModel(f"no model {known!r} is served here; there is: {', '.join(self.names)}")
        if at and fingerprint != model.fingerprint:
            raise UnknownModel(
                f"the bundle of model {model.name} is {model.fingerprint!r} here, not {fingerprint!r}; latents of one "
                "mean nothing to the other"
            )
        return model

    async def warm_up(self) -> None:
        """Runs all graphs once per batch size.

        Raises:
            BundleError: graphs and manifest contradict each other.
        """
        for model in self._models.values():
            await self._warm_up(model)

    async def reload(self) -> None:
        """Replaces the models whose bundles have changed; one that can't be used leaves the old one in service."""
        for name in self.names:
            await self._reload(name)

    async def watch_for_changes(self, every_s: float) -> None:
        """Looks for changed bundles from time to time, until cancelled."""
        seen: dict[str, FileVersions | None] = {}
        while True:
            await asyncio.sleep(every_s)
            for name, path in self._bundles.items():
                versions = _file_versions(path)
                # Files that have changed since the last look are still on their way into the folder.
                at_rest = versions is not None and versions == seen.get(name)
                seen[name] = versions
                if at_rest and versions != self._versions[name]:
                    await self._reload(name)

    def hurry(self) -> None:
        """Starts batches without waiting for others from now on: the server is about to end."""
        for model in self._models.values():
            model.hurry()

    @property
    def busy(self) -> list[str]:
        """The models that `close` is waiting for, those among them that were replaced."""
        return sorted(set(self._ending.values()))

    async def close(self) -> None:
        """Answers what was accepted, then ends all queues and threads."""
        for name, model in self._models.items():
            self._end(name, model)
        await asyncio.gather(*self._ending)
        self._scheduler.close()

    def _end(self, name: str, model: Model) -> None:
        ending = asyncio.get_running_loop().create_task(model.close())
        self._ending[ending] = name
        ending.add_done_callback(self._ending.pop)

    async def _reload(self, name: str) -> None:
        """Takes a bundle, if it isn't the one that is served and can be used."""
        async with self._loading:
            path, old = self._bundles[name], self._models[name]
            self._versions[name] = _file_versions(path)
            try:
                if await in_thread(_fingerprint, path) == old.fingerprint:
                    return
                new = await self._open(name)
                try:
                    await self._warm_up(new)
                except BaseException:
                    self._end(name, new)  # not here: the warm-up may be stuck, and this be cancelled for that
                    raise
            except Exception as error:
                expected = isinstance(error, (EngineError, OSError))
                text = "model %s: the bundle at %s is refused, the old one stays: %s"
                logger.error(text, name, path, error, exc_info=None if expected else error)
                self._reloaded(name, False)
                release_frames(error)  # or what was opened in vain would stay, on a GPU too
                return
            self._models[name] = new
            logger.info("model %s: bundle %s takes over from %s", name, new.fingerprint, old.fingerprint)
            self._reloaded(name, True)
            self._end(name, old)

    async def _open(self, name: str) -> Model:
        """Verifies and compiles beside what is served."""
        path = self._bundles[name]

        def load() -> tuple[Bundle, Backend, str]:
            give_way()  # and so do the threads that the runtime starts
            fingerprint = _fingerprint(path)
            bundle = Bundle.load(path)
            size, most = bundle.manifest.image_size, self._config.max_message_bytes
            if size**2 * 3 > most:
                raise BundleError(
                    f"an image of {path} takes {size**2 * 3} bytes, and --max-message-bytes is {most}; "
                    "raise it to hold some of them"
                )
            if self._config.max_batch is not None:
                bundle = bundle.with_max_batch_size(self._config.max_batch)
            backend = self._opener(bundle)
            if _fingerprint(path) != fingerprint:  # what was read may be of either
                backend.close()
                raise BundleError(f"{path} was replaced by another bundle while it was read; load it again")
            return bundle, backend, fingerprint

        return Model(
            name,
            *await in_thread(load),
            scheduler=self._scheduler,
            config=self._config,
            pixels=self._pixels,
            observer=lambda graph: self._observer(name, graph),
        )

    async def _warm_up(self, model: Model) -> None:
        # One batch at a time, so that those of clients go in between.
        for call in warmup_calls(model.backend, model.bundle.manifest):
            await self._scheduler.run(call)


def _fingerprint(path: Path) -> str:
    """Hash of the manifest, which has the hashes of all other files; "" where there is none."""
    try:
        return sha256_of(path / MANIFEST)[:16]
    except OSError:  # loading the bundle says what is wrong with it
        return ""


def _file_versions(folder: Path) -> FileVersions | None:
    """Changes when a file of the folder does; None where there is no folder."""
    try:
        return frozenset((entry.name, version_of(entry)) for entry in os.scandir(folder))
    except OSError:
        return None
