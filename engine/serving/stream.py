"""One EditStream: requests are worked on side by side, answered in order, and the last source is remembered."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
import numpy.typing as npt

from engine.calls.call import current
from engine.calls.details import shortened
from engine.errors import EngineError, InvalidRequest
from engine.serving.answer import Answer, StreamAnswer, answer
from engine.serving.catalog import Catalog
from engine.serving.model import Model, Terms
from engine.serving.wire import Source, count_of, read_output
from protos import dfcvae_pb2 as pb

Floats = npt.NDArray[np.float32]
Response = StreamAnswer | pb.EditStreamResponse

logger = logging.getLogger(__name__)


class _Source:
    """A source that requests go back to.

    Attributes:
        request: The request that brought it.
        answered: Set when that request is.
        encoded: The model that encoded it, and mu, float32 [N, D]; None before, and where encoding failed.
    """

    def __init__(self, request: pb.EditStreamRequest) -> None:
        self.request = request
        self.answered = asyncio.Event()
        self.encoded: tuple[Model, Floats] | None = None


class EditStream:
    """Answers the requests of one stream.

    Args:
        catalog: What is served.
        terms: Gives the terms of a request.
    """

    def __init__(self, catalog: Catalog, terms: Callable[[pb.EditStreamRequest], Terms]) -> None:
        self._catalog = catalog
        self._terms = terms

    async def answers(self, requests: AsyncIterator[pb.EditStreamRequest], ahead: int) -> AsyncIterator[Response]:
        """One answer for each request, in their order.

        At most `ahead` requests are read before their answers are taken: a client that doesn't read is not read.
        """
        loop = asyncio.get_running_loop()
        started: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
        room = asyncio.Semaphore(ahead)

        async def read() -> None:
            source: _Source | None = None
            try:
                async for request in requests:
                    if new := request.WhichOneof("source") is not None:
                        source = _Source(request)
                    started.put_nowait(loop.create_task(self._answer(request, source, new)))
                    await room.acquire()
            finally:
                started.put_nowait(None)

        reader = loop.create_task(read())
        working: asyncio.Task[Response] | None = None
        try:
            while (working := await started.get()) is not None:
                yield await working
                room.release()
            await reader
        finally:  # also when the client has gone
            reader.cancel()
            while working is not None or not started.empty():
                if working is not None:
                    working.cancel()
                working = started.get_nowait() if not started.empty() else None

    async def _answer(self, request: pb.EditStreamRequest, source: _Source | None, new: bool) -> Response:
        """Answers one request; what is wrong with it goes into the answer."""
        try:
            if source is None:
                raise InvalidRequest("the stream has no source yet; set images or latents", "source")
            edited = await (self._edit(request, source) if new else self._edit_again(request, source))
            return StreamAnswer(edited, request.id)
        except EngineError as error:
            code, message, wait_s = grpc.StatusCode[error.status], shortened(str(error)), error.retry_after_s or 0.0
        except Exception:
            logger.exception("a request of a stream failed")
            code, wait_s = grpc.StatusCode.INTERNAL, 0.0
            message = "the server failed on this request; its log has the reason"
        wrong = pb.StreamError(code=code.value[0], message=message, retry_after_ms=math.ceil(wait_s * 1000))
        return pb.EditStreamResponse(error=wrong, id=request.id)

    async def _edit(self, request: pb.EditStreamRequest, source: _Source) -> Answer:
        """Edits a source that has just come."""
        try:
            with self._catalog.get(request.model).lease() as model:
                return await self._edited(request, model, _read(model, request), source)
        finally:
            source.answered.set()

    async def _edit_again(self, request: pb.EditStreamRequest, source: _Source) -> Answer:
        """Edits the latents of a source that came before."""
        await source.answered.wait()
        with self._catalog.get(request.model or source.request.model).lease() as model:
            # Another model, perhaps loaded meanwhile, has other latents.
            if source.encoded is not None and source.encoded[0] is model:
                return await self._edited(request, model, source.encoded[1], source)
            return await self._edited(request, model, _read(model, source.request), source)

    async def _edited(self, request: pb.EditStreamRequest, model: Model, given: Source, source: _Source) -> Answer:
        terms, output = self._terms(request), read_output(request)
        move = model.reader.move(request.edits, request.keep)
        current().spend(count_of(given))
        images, mu = await model.edit(given, move, terms, decode=output.images)
        source.encoded = (model, mu)
        return await answer(pb.EditResponse(), model, output, images, mu + move.step if output.latents else None)


def _read(model: Model, request: pb.EditStreamRequest) -> Source:
    source = model.reader.source(request)
    assert source is not None, "a request is a source only if it has one"
    return source
