"""Sessions of edits over one stream, each waiting for its answer: somebody moves a slider.

Shapes: N images of side S, latents of dimension D.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, cast

import grpc
import grpc.aio

from engine.arrays import Bytes
from engine.client import messages
from engine.client.errors import ClientError
from engine.client.values import Edited, Edits, Options, Source, StreamEdit
from protos import dfcvae_pb2 as pb

_FAREWELL_S = 1.0


class Slider(contextlib.AbstractContextManager["Slider"]):
    """A stream of edits from `Client.stream`; threads may share it, their edits take turns.

    A source that is None stands for the last one, whose latents the server still has: the edit costs a decode only.
    An edit that fails raises `ClientError`, and the stream goes on; it has ended when that is UNAVAILABLE,
    DEADLINE_EXCEEDED or CANCELLED.
    """

    def __init__(self, method: Callable[..., Any], options: Options, error: Callable[[Any], ClientError]) -> None:
        self._options = options
        self._error = error
        self._lock = threading.Lock()
        self._requests: queue.SimpleQueue[pb.EditStreamRequest | None] = queue.SimpleQueue()
        self._sent = 0
        self._call = method(iter(self._requests.get, None))

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream; a server that doesn't agree within a second is left alone."""
        self._requests.put(None)
        with contextlib.suppress(grpc.FutureTimeoutError, grpc.FutureCancelledError):
            self._call.exception(_FAREWELL_S)
        self._call.cancel()

    def edit(self, source: Source | None, edits: Edits, keep: Iterable[str] = ()) -> Bytes:
        """As `Client.edit`: images uint8 [N, S, S, 3]."""
        return cast(Bytes, self.send(StreamEdit(source, edits, keep)).images)

    def send(self, step: StreamEdit) -> Edited:
        """Makes one step and waits for its answer; the step says in which form that comes."""
        with self._lock:
            self._sent += 1
            self._requests.put(messages.stream_request(step, self._options, self._sent))
            try:
                # The answer to a step before is still to come when the wait for it was interrupted.
                answer = next(one for one in self._call if one.id == self._sent)
            except StopIteration:
                raise _ended() from None
            except grpc.RpcError as error:
                raise self._error(error) from None
        return _result(answer)


class AsyncSlider(contextlib.AbstractAsyncContextManager["AsyncSlider"]):
    """As `Slider`, for asyncio: from `AsyncClient.stream`, tasks may share it. Cancelling an edit ends the stream."""

    def __init__(self, method: Callable[..., Any], options: Options, error: Callable[[Any], ClientError]) -> None:
        self._options = options
        self._error = error
        self._lock = asyncio.Lock()
        self._call = method()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the stream; a server that doesn't agree within a second is left alone."""
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, asyncio.TimeoutError):
            await self._call.done_writing()
            await asyncio.wait_for(self._call.code(), _FAREWELL_S)
        self._call.cancel()

    async def edit(self, source: Source | None, edits: Edits, keep: Iterable[str] = ()) -> Bytes:
        """As `Client.edit`: images uint8 [N, S, S, 3]."""
        return cast(Bytes, (await self.send(StreamEdit(source, edits, keep))).images)

    async def send(self, step: StreamEdit) -> Edited:
        """Makes one step and waits for its answer; the step says in which form that comes."""
        async with self._lock:
            request = messages.stream_request(step, self._options)
            if self._call.cancelled():  # Reading it would look as if the task were cancelled.
                raise _ended()
            try:
                # Only reading tells why a stream has ended.
                with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                    await self._call.write(request)
                answer = await self._call.read()
            except grpc.RpcError as error:
                raise self._error(error) from None
            if answer is grpc.aio.EOF:
                raise _ended()
        return _result(answer)


def _ended() -> ClientError:
    return ClientError("UNAVAILABLE", "the stream has ended; open another one")


def _result(answer: pb.EditStreamResponse) -> Edited:
    result = messages.read_stream_answer(answer)
    if isinstance(result, ClientError):
        raise result
    return result
