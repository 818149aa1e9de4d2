"""The asyncio client: as the synchronous one, with `await`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from types import TracebackType
from typing import TypeVar

import grpc
import grpc.aio
from typing_extensions import Self, Unpack

from engine.client import messages
from engine.client.connection import Connection
from engine.client.errors import ClientError
from engine.client.slider import AsyncSlider
from engine.client.values import (
    Bytes,
    Distribution,
    Edited,
    Edits,
    FileFormat,
    Floats,
    Images,
    Model,
    Options,
    Posterior,
    StreamEdit,
    Walk,
)

T = TypeVar("T")


class AsyncClient(Connection):
    """`Client` for asyncio: the same methods with the same arguments and results, to be awaited.

    Construct it inside a running event loop, use it there only, and as an asynchronous context manager.
    """

    _channels = grpc.aio

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that are under way are cancelled."""
        self._closed = True
        await self._channel.close()

    async def model(self, **options: Unpack[Options]) -> Model:
        """As `Client.model`."""
        return await self._run(messages.get_model(), options)

    async def encode(self, images: Images, **options: Unpack[Options]) -> Posterior:
        """As `Client.encode`."""
        return await self._run(messages.encode(images), options)

    async def decode(self, latents: Floats, **options: Unpack[Options]) -> Bytes:
        """As `Client.decode`."""
        return await self._run(messages.decode(latents), options)

    async def decode_files(
        self, latents: Floats, file_format: FileFormat = "PNG", quality: int = 0, **options: Unpack[Options]
    ) -> list[bytes]:
        """As `Client.decode_files`."""
        return await self._run(messages.decode_files(latents, file_format, quality), options)

    async def edit(
        self, source: Images | Floats, edits: Edits, keep: Iterable[str] = (), **options: Unpack[Options]
    ) -> Bytes:
        """As `Client.edit`."""
        return await self._run(messages.edit(source, edits, keep), options)

    async def edit_files(
        self,
        source: Images | Floats,
        edits: Edits,
        keep: Iterable[str] = (),
        file_format: FileFormat = "PNG",
        quality: int = 0,
        **options: Unpack[Options],
    ) -> list[bytes]:
        """As `Client.edit_files`."""
        return await self._run(messages.edit_files(source, edits, keep, file_format, quality), options)

    async def edit_latents(
        self, source: Images | Floats, edits: Edits, keep: Iterable[str] = (), **options: Unpack[Options]
    ) -> Floats:
        """As `Client.edit_latents`."""
        return await self._run(messages.edit_latents(source, edits, keep), options)

    async def edit_both(
        self, source: Images | Floats, edits: Edits, keep: Iterable[str] = (), **options: Unpack[Options]
    ) -> tuple[Bytes, Floats]:
        """As `Client.edit_both`."""
        return await self._run(messages.edit_both(source, edits, keep), options)

    async def interpolate(
        self,
        start: Images | Floats,
        end: Images | Floats,
        steps: int,
        walk: Walk = "linear",
        **options: Unpack[Options],
    ) -> Bytes:
        """As `Client.interpolate`."""
        return await self._run(messages.interpolate(start, end, steps, walk), options)

    async def interpolate_latents(
        self,
        start: Images | Floats,
        end: Images | Floats,
        steps: int,
        walk: Walk = "linear",
        **options: Unpack[Options],
    ) -> Floats:
        """As `Client.interpolate_latents`."""
        return await self._run(messages.interpolate_latents(start, end, steps, walk), options)

    async def sample(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        distribution: Distribution = "auto",
        **options: Unpack[Options],
    ) -> Bytes:
        """As `Client.sample`."""
        return await self._run(messages.sample(count, seed, temperature, distribution), options)

    async def sample_latents(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        distribution: Distribution = "auto",
        **options: Unpack[Options],
    ) -> Floats:
        """As `Client.sample_latents`."""
        return await self._run(messages.sample_latents(count, seed, temperature, distribution), options)

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

    async def health(self) -> str:
        """As `Client.health`."""
        return await self._run(messages.health(), {})

    async def _run(self, call: messages.Call[T], options: Options) -> T:
        merged = self._with_defaults(options)
        messages.address(call.request, merged)
        patience = self._patience(merged)
        method = self._methods[call.method]
        while True:
            try:
                answer = await method(call.request, **self._call_arguments(merged, patience.remaining()))
            except grpc.RpcError as error:
                await asyncio.sleep(patience.pause_after(self._error(error)))
            else:
                return call.read(answer)
