"""Both clients, synchronous and for asyncio: numpy or image files in, numpy or image files out.

Shapes: N images of side S, latents of dimension D; `Client.model()` says S and D.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable

import grpc
import grpc.aio
from typing_extensions import Self, Unpack

from engine.client import messages
from engine.client.calls import AwaitedCalls, BlockingCalls
from engine.client.errors import ClientError
from engine.client.slider import AsyncSlider, Slider
from engine.client.values import Edited, Options, StreamEdit


class Client(BlockingCalls):
    """A connection to one server; use it as a context manager, from as many threads as you like.

    `Connection` says what it is made from. Wherever images go in they are either pixels, uint8 [N, S, S, 3] RGB, or a
    sequence of JPEG, PNG or WebP files (their bytes), which the server brings to the model's frame (`Model.frame`) as
    in training, by their size alone; `framing.Aligner` finds faces first. Pixels that come back are read-only views of
    the answer; copy them to change them. Requests are sent whole: more than `Model.max_images_per_request` images are
    refused, not split.

    Every method takes `Options` (model, priority, timeout, request_id) by name, which stand in for the client's own;
    raises `ClientError` with the server's status and message when the call fails, and `ValueError` or `TypeError` when
    an argument can't be sent.
    """

    _channels = grpc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are under way are cancelled."""
        self._closed = True
        self._channel.close()

    def edit_stream(
        self, steps: Iterable[StreamEdit], **options: Unpack[Options]
    ) -> Generator[Edited | ClientError, None, None]:
        """Edits one after the other: a video, or a slider that is recorded.

        Steps are taken as fast as the server reads them, from a thread of their own, so many are on their way at once.
        An exception of `steps` comes out after the answers to the steps before it. The timeout is that of the whole
        stream; there is none when it isn't given.

        Yields:
            One answer per step, in their order: its results, or what was wrong with the step; the stream goes on.
        """
        with self._answers(messages.stream_requests, steps, options) as answers:
            for answer in answers:
                yield messages.read_stream_answer(answer)

    def stream(self, **options: Unpack[Options]) -> Slider:
        """Opens a stream for edits of which each waits for its answer; use it as a context manager.

        The timeout among the options is that of the whole stream; there is none when it isn't given.
        """
        return Slider(*self._stream(options), self._error)


class AsyncClient(AwaitedCalls):
    """`Client` for asyncio: the same methods with the same arguments and results, to be awaited.

    Construct it inside a running event loop, use it there only, and as an asynchronous context manager.
    """

    _channels = grpc.aio

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that are under way are cancelled."""
        self._closed = True
        await self._channel.close()

    async def edit_stream(
        self, steps: Iterable[StreamEdit] | AsyncIterable[StreamEdit], **options: Unpack[Options]
    ) -> AsyncGenerator[Edited | ClientError, None]:
        """As `Client.edit_stream`; the steps may come asynchronously."""
        with self._answers(messages.async_stream_requests, steps, options) as answers:
            async for answer in answers:
                yield messages.read_stream_answer(answer)

    def stream(self, **options: Unpack[Options]) -> AsyncSlider:
        """As `Client.stream`; an asynchronous context manager."""
        return AsyncSlider(*self._stream(options), self._error)
