"""One EditStream: requests are worked on side by side, answered in order, and the last source is remembered."""

import asyncio
import math
import weakref
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

import grpc
import numpy as np

from engine.arrays import Bytes, Floats
from engine.errors import InvalidRequest, UnknownModel, release_frames
from engine.images import EncodedFiles
from engine.models.model import Model, Source, latents_of
from engine.models.repository import ModelRepository
from engine.service.request_scope import Call, RequestScope, count_sent, read_output
from engine.service.status import domain_error, truncated
from framing import Frame
from protos import dfcvae_pb2 as pb


class _Source:
    """A source that requests go back to.

    The request that brought it is dropped as soon as its images are decoded or refused. Its pixels stay, since a model
    that takes the place of another has other latents.
    """

    def __init__(self, request: pb.EditStreamRequest) -> None:
        self.model = request.model
        self.images = count_sent(request)  # or latents, true or not
        self.answered = asyncio.Event()
        # By which model, and mu, float32 [N, D]; a model that was replaced meanwhile isn't kept alive by this.
        self.encoded: tuple[weakref.ref[Model], Floats] | None = None
        # The request; what was read of it, pixels or latents; or why they can't be used.
        self._held: pb.EditStreamRequest | Bytes | Floats | str = request
        self._frame: Frame | None = None  # that pixels were brought to

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        mu = 0 if self.encoded is None else self.encoded[1].nbytes
        if isinstance(self._held, str):
            return mu
        return mu + (self._held.nbytes if isinstance(self._held, np.ndarray) else self._held.ByteSize())

    def read(self, scope: RequestScope) -> Source:
        """Its images or latents, for the model of a request.

        Raises:
            InvalidRequest: When they can't be used.
        """
        if isinstance(self._held, str):
            raise InvalidRequest(self._held, "source")
        if isinstance(self._held, pb.EditStreamRequest):
            return scope.source(self._held)
        if latents_of(self._held) is None and self._frame != scope.model.bundle.manifest.frame:
            raise InvalidRequest("the stream's last source was framed for another model; send it again", "source")
        return self._held

    def take(self, given: Source, model: Model) -> None:
        """Keeps what was read, in place of the request, once it is decoded."""
        pixels = given.pixels if isinstance(given, EncodedFiles) else given
        if isinstance(self._held, pb.EditStreamRequest) and pixels is not None:
            self._held, self._frame = pixels, model.bundle.manifest.frame

    def refuse(self, fault: str) -> None:
        """Drops the request, whose images or latents can't be used."""
        self._held = fault


class _Work(NamedTuple):
    """A request that is being answered."""

    task: "asyncio.Task[pb.EditStreamResponse]"
    size: int  # bytes of the images that the answer has at most
    share: float  # of the images that one request may have
    source: _Source | None


class EditStream:
    """Answers the requests of one stream."""

    def __init__(self, repository: ModelRepository, call: Call) -> None:
        self._repository = repository
        self._call = call

    async def answers(
        self, requests: AsyncIterator[pb.EditStreamRequest], ahead: int
    ) -> AsyncIterator[pb.EditStreamResponse]:
        """One answer for each request, in their order.

        At most `ahead` requests, and no more images than one request may have, are read before their answers are
        taken: a client that doesn't read is not read.
        """
        loop, hold = asyncio.get_running_loop(), self._call.hold
        started: asyncio.Queue[_Work | None] = asyncio.Queue()
        works: deque[_Work] = deque()  # whose answers are not taken yet
        taken = asyncio.Event()
        source: _Source | None = None

        async def read() -> None:
            nonlocal source
            try:
                async for request in requests:
                    if new := request.WhichOneof("source") is not None:
                        source = _Source(request)
                    size, share = self._measure(request, source)
                    hold(size)
                    works.append(_Work(loop.create_task(self._answer(request, source, new)), size, share, source))
                    started.put_nowait(works[-1])
                    del request  # it would stay while the client is silent, and nobody count it
                    while len(works) >= ahead or sum(work.share for work in works) >= 1:
                        taken.clear()
                        await taken.wait()
            finally:
                started.put_nowait(None)

        reader = loop.create_task(read())
        kept = 0
        try:
            while (work := await started.get()) is not None:
                yield await work.task
                # What the message held is let go of with its answer; what is remembered of it is held from then on.
                now = work.source.size if work.source is not None and work.source is source else 0
                hold(now - kept - work.size)
                kept = now
                works.popleft()
                taken.set()
                del work
            await reader
        finally:  # also when the client has gone
            reader.cancel()
            for work in works:
                work.task.cancel()

    def _measure(self, request: pb.EditStreamRequest, source: _Source | None) -> tuple[int, float]:
        """Bytes of the images that a request's answer has at most, and its share of those that one request may have."""
        try:
            model = self._repository.get(request.model or (source.model if source else ""))
        except UnknownModel:  # the answer will say so
            return 0, 0
        images = min(source.images, model.max_images) if source else 0
        return images * model.bundle.manifest.image_size**2 * 3, images / model.max_images

    async def _answer(self, request: pb.EditStreamRequest, source: _Source | None, new: bool) -> pb.EditStreamResponse:
        """Answers one request; what is wrong with it goes into the answer."""
        try:
            if source is None:
                raise InvalidRequest("the stream has no source yet; set images or latents", "source")
            response = pb.EditStreamResponse(id=request.id)
            await self._edit(request, source, response.edited, new)
            self._call.replied("OK", "")
            return response
        except Exception as error:
            told = domain_error(error, "a request of a stream")
            code, message, wait_s = grpc.StatusCode[told.status], truncated(str(told)), told.retry_after_s or 0.0
            release_frames(error)
        self._call.replied(code.name, message)
        wrong = pb.StreamError(code=code.value[0], message=message, retry_after_ms=math.ceil(wait_s * 1000))
        return pb.EditStreamResponse(error=wrong, id=request.id)

    async def _edit(self, request: pb.EditStreamRequest, source: _Source, response: pb.EditResponse, new: bool) -> None:
        """Edits a source: a `new` one, or the latents of one that came before, which stay the source's."""
        if not new:
            await source.answered.wait()
        try:
            with RequestScope(self._repository, self._call, request, request.model or source.model) as scope:
                model, encoded = scope.model, source.encoded
                # Another model, perhaps loaded meanwhile, has other latents.
                given = encoded[1] if encoded and encoded[0]() is model else source.read(scope)
                output = read_output(request)
                move, conditions = scope.move(request.edits, request.keep), scope.conditions(request)
                try:
                    with scope.admit(len(given), decodes=bool(conditions)) as context:
                        images, mu, latents = await model.edit(given, move, conditions, context, decode=output.images)
                finally:
                    source.take(given, model)
                source.encoded = (weakref.ref(model), mu.copy())  # it may be a part of a whole batch
                await scope.respond(response, output, images, latents)
        except InvalidRequest as error:
            if error.field.startswith(("images", "latents")):
                fault = f"the stream's last source was refused: {error}"
                if not new:
                    raise InvalidRequest(fault, "source") from None
                source.refuse(fault)
            raise
        finally:
            source.answered.set()
