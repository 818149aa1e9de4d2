"""One model that is served: a bundle, its opened graphs, and their queues.

Shapes: N images of side S, latents of dimension D.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np

from engine.arrays import Bytes, Floats
from engine.backends import Backend
from engine.batching.batcher import Batcher, BatchObserver, Part, RequestContext, Reservation
from engine.batching.scheduler import Scheduler
from engine.bundle import Bundle
from engine.config import ServerConfig
from engine.images import Codec, EncodedFiles, PixelBudget
from engine.latents import FITTED, Conditions, Gaussian, Move, Prior

Images: TypeAlias = Bytes | EncodedFiles
"""Pixels, uint8 [N, S, S, 3], or files."""
Source: TypeAlias = Images | Floats
"""Images, or latents, float32 [N, D]."""

STANDARD = "standard"
"""Name of N(0, I) among the priors that samples are drawn from."""

# Multiplications that latents may take on the event loop, about a millisecond's. Most requests are small, and a thread
# would cost them more than it saves.
_FEW = 2**19


class Model:
    """Computes for all clients of a bundle. Construct it inside a running event loop.

    `encode`, `decode` and `edit` raise what `Batcher.submit` and, for files, `Codec.decode` raise. The scheduler and
    the budget of pixels are shared with other models; `observer` gives what watches the queue of "encode", "decode" or
    "edit".

    Attributes:
        max_images: Most images or latents of a request.
        priors: What samples are drawn from, by name, the default first.
        centre: Mean of what training faces are encoded to, [D]; the origin where the bundle doesn't say.
        codec: Decodes and encodes image files.
    """

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        backend: Backend,
        fingerprint: str,
        *,
        scheduler: Scheduler,
        config: ServerConfig,
        pixels: PixelBudget,
        observer: Callable[[str], BatchObserver],
    ) -> None:
        manifest = bundle.manifest
        self.name = name
        self.bundle = bundle
        self.fingerprint = fingerprint
        # The largest answer, images as PNG of noise plus latents, must fit into one message.
        bytes_per_image = manifest.image_size**2 * 3 + 8 * manifest.latent_dim + 1024
        fitting = config.max_message_bytes // bytes_per_image
        self.max_images = max(1, min(config.max_images_per_request, config.max_queue, fitting))
        standard = Gaussian.standard(manifest.latent_dim)
        self.priors: dict[str, Prior] = {**bundle.priors, STANDARD: standard}
        self.centre = bundle.priors.get(FITTED, standard).mean
        self.codec = Codec(manifest.frame, config.codec_threads, config.max_pixels_per_file, pixels)
        self.backend = backend
        queue = partial(
            Batcher,
            scheduler=scheduler,
            max_batch_size=manifest.max_batch_size,
            max_delay=config.max_delay_ms / 1000,
            max_queue=config.max_queue,
            overlaps=backend.overlaps,
            together=backend.together,
        )
        image = (manifest.image_size, manifest.image_size, 3), np.uint8
        latent = (manifest.latent_dim,), np.float32
        self._encoder = queue(lambda given, _: self.backend.encode(given), *image, observer=observer("encode"))
        self._decoder = queue(lambda given, _: (self.backend.decode(given),), *latent, observer=observer("decode"))
        self._editor = queue(self._run_edit, *image, observer=observer("edit"))
        self._batchers = (self._encoder, self._decoder, self._editor)
        self._scheduler = scheduler
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextmanager
    def lease(self) -> Iterator["Model"]:
        """Keeps the model open for a request."""
        self._leases += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._leases -= 1
            if not self._leases:
                self._unused.set()

    def hurry(self) -> None:
        """Starts batches without waiting for others from now on."""
        for batcher in self._batchers:
            batcher.hurry()

    async def close(self) -> None:
        """Waits for the requests that hold a lease, then ends the queues and threads, and lets go of the backend."""
        await self._unused.wait()
        for batcher in self._batchers:
            await batcher.close()
        self.codec.close()
        # After the last batch of a warm-up, which nobody waits for any more.
        await self._scheduler.run(self._close_backend)
        # A runtime ends its threads with its graphs, whose priority is low: on a busy machine that takes seconds, which
        # neither the event loop nor the end of the process waits for. Calls that have just ended may know this model.
        graphs = [self.backend]
        del self.backend
        threading.Thread(target=graphs.clear, name="free", daemon=True).start()

    def _close_backend(self) -> None:
        """For a compute thread, which would hold what it is given for a while: the model, and not the backend."""
        self.backend.close()

    async def encode(self, images: Images, context: RequestContext) -> tuple[Floats, Floats]:
        """Images to mu and log_var, float32 [N, D] each."""
        mu, log_var = await self._submit_images(self._encoder, images, None, context)
        return mu, log_var

    async def decode(self, latents: Floats, context: RequestContext) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, S, S, 3]."""
        images: Bytes
        (images,) = await self._decoder.submit(latents, context)
        return images

    async def mu(self, source: Source, context: RequestContext) -> Floats:
        """Latents as they are, and the posterior means of images: float32 [N, D]."""
        if (latents := latents_of(source)) is not None:
            return latents
        mu, _ = await self.encode(cast(Images, source), context)
        return mu

    async def edit(
        self, source: Source, move: Move, conditions: Conditions, context: RequestContext, *, decode: bool = True
    ) -> tuple[Bytes | None, Floats, Floats]:
        """Edits images or latents.

        Returns:
            The edited images, uint8 [N, S, S, 3], if `decode`; mu before the edit and after it, float32 [N, D].
        """
        if decode and not conditions and latents_of(source) is None:
            images, mu = await self._submit_images(self._editor, cast(Images, source), move, context)
            return images, mu, mu + move.step
        mu = await self.mu(source, context)
        latents = mu + move.step
        if conditions:
            count = len(mu) * (1 + len(conditions))
            latents = await self.compute(count, lambda: conditions.project(latents), context)
        return await self.decode(latents, context) if decode else None, mu, latents

    async def compute(self, count: int, latents: Callable[[], Floats], context: RequestContext) -> Floats:
        """Computes that many latents, off the event loop where it would be held up by them."""
        few = count * self.bundle.manifest.latent_dim**2 <= _FEW
        return latents() if few else await self.codec.work(latents, context.client)

    def room(self, count: int, client: str) -> Reservation:
        """Holds room for decoding that many latents, for requests that decode what they compute first."""
        return self._decoder.reserve(count, client=client)

    async def _submit_images(
        self, batcher: Batcher, images: Images, move: Move | None, context: RequestContext
    ) -> tuple[Any, ...]:
        if isinstance(images, np.ndarray):
            return await batcher.submit(images, context._replace(room=None), tag=move)
        # Room is held while files are decoded: that work must not be for nothing.
        with batcher.reserve(len(images), client=context.client) as room:
            images.pixels = await self.codec.decode(images.contents, images.field, context.client)
            return await batcher.submit(images.pixels, context._replace(room=room), tag=move)

    def _run_edit(self, images: Bytes, parts: Sequence[Part]) -> tuple[Any, ...]:
        counts = [part.stop - part.start for part in parts]
        return self.backend.edit(images, np.repeat(np.stack([part.tag.step for part in parts]), counts, axis=0))


def latents_of(source: Source) -> Floats | None:
    """The latents, if it is latents rather than images."""
    return cast(Floats, source) if isinstance(source, np.ndarray) and source.dtype == np.float32 else None
