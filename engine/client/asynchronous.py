"""The asyncio client: as the synchronous one, with `await`."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable

import grpc
import grpc.aio
from typing_extensions import Self, Unpack

from engine.client import messages
from engine.client.calls import AwaitedCalls
from engine.client.errors import ClientError
from engine.client.slider import AsyncSlider
from engine.client.values import Edited, Options, StreamEdit


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
        merged, method = self._stream(options)
        failures: list[Exception] = []
        requests = messages.async_stream_requests(steps, merged, failures)
        call = method(requests)
        try:
            async for answer in call:
                yield messages.read_stream_answer(answer)
        except grpc.RpcError as error:
            raise self._error(error) from None
        finally:
            call.cancel()
        if failures:
            raise failures[0]

    def stream(self, **options: Unpack[Options]) -> AsyncSlider:
        """As `Client.stream`; an asynchronous context manager."""
        merged, method = self._stream(options)
        return AsyncSlider(method, merged, self._error)
