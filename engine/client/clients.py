"""Both clients, synchronous and for asyncio: numpy or image files in, numpy or image files out.

Each unary call is written once, as a method that says what to ask and how to read the answer.

Shapes: N images of side S, latents of dimension D; `Client.model()` says S and D.
"""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import grpc
import grpc.aio
import numpy.typing as npt
from grpc_health.v1 import health_pb2
from typing_extensions import Unpack

from engine.arrays import Bytes, Floats
from engine.client import messages
from engine.client.connection import Connection
from engine.client.errors import ClientError, RetryBudget
from engine.client.slider import AsyncSlider, Slider
from engine.client.values import (
    ConditionalOptions,
    Distribution,
    Edited,
    Edits,
    FileFormat,
    Images,
    Model,
    Options,
    Posterior,
    Source,
    StreamEdit,
    Walk,
)
from protos import dfcvae_pb2 as pb

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A unary call that is still to be made: a method of the contract, what it is sent, and what reads its answer."""

    method: str
    request: Any
    options: Options
    read: Callable[[Any], T]


class Method(Generic[P, T]):
    """A method of both clients: one gives what was read, the other what is to be awaited for it."""

    def __init__(self, call: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._call = call

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Call[T]]: ...

    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: Any, owner: type) -> Any:
        return self._call if client is None else functools.wraps(self._call)(functools.partial(client._ask, self._call))


class Calls(Connection):
    """What a server can be asked for."""

    @Method
    def model(self, **options: Unpack[Options]) -> Call[Model]:
        """What the server serves."""
        return Call("GetModel", pb.GetModelRequest(), options, messages.read_model)

    @Method
    def health(self) -> Call[str]:
        """Whether the server is ready for calls: "SERVING" or "NOT_SERVING"; neither token nor model matters."""
        names = health_pb2.HealthCheckResponse.ServingStatus
        return Call("Check", health_pb2.HealthCheckRequest(), {}, lambda answer: str(names.Name(answer.status)))

    @Method
    def encode(self, images: Images, **options: Unpack[Options]) -> Call[Posterior]:
        """Images to the parameters of their posteriors."""
        return Call("Encode", messages.encode_request(images), options, messages.read_posterior)

    @Method
    def decode(self, latents: Floats, **options: Unpack[Options]) -> Call[Bytes]:
        """Latents, float32 [N, D], to images, uint8 [N, S, S, 3]."""
        return Call("Decode", messages.decode_request(latents), options, messages.read_images)

    @Method
    def decode_files(
        self, latents: Floats, file_format: FileFormat = "PNG", quality: int = 0, **options: Unpack[Options]
    ) -> Call[list[bytes]]:
        """Latents, float32 [N, D], to one image file each; quality 1 to 100, 0 for the server's default."""
        request = messages.decode_request(latents, file_format, quality)
        return Call("Decode", request, options, messages.read_files)

    @Method
    def edit(
        self, source: Source, edits: Edits = (), keep: Iterable[str] = (), **options: Unpack[ConditionalOptions]
    ) -> Call[Bytes]:
        """Moves images or latents along directions.

        Args:
            source: Images, or latents float32 [N, D].
            edits: Strengths by attribute name, or pairs of a name or an explicit direction float32 [D] and a
                strength. The unit is the length of the attribute's mean difference, as protos/dfcvae.proto defines it.
            keep: Attributes that must stay as they are: their directions are projected out of the edits.
            options: Having and lacking, by which each face is moved as little as it takes, so that more of the person
                stays than with a strength for all; model, priority, timeout, request_id.

        Returns:
            Edited images, uint8 [N, S, S, 3].
        """
        request = messages.edit_request(StreamEdit(source, edits, keep))
        return _conditional("Edit", request, options, messages.read_images)

    @Method
    def edit_files(
        self,
        source: Source,
        edits: Edits = (),
        keep: Iterable[str] = (),
        file_format: FileFormat = "PNG",
        quality: int = 0,
        **options: Unpack[ConditionalOptions],
    ) -> Call[list[bytes]]:
        """As `edit`, to one image file each; quality 1 to 100, 0 for the server's default."""
        request = messages.edit_request(StreamEdit(source, edits, keep, "images", file_format, quality))
        return _conditional("Edit", request, options, messages.read_files)

    @Method
    def edit_latents(
        self, source: Source, edits: Edits = (), keep: Iterable[str] = (), **options: Unpack[ConditionalOptions]
    ) -> Call[Floats]:
        """As `edit`, to latents float32 [N, D]; nothing is decoded."""
        request = messages.edit_request(StreamEdit(source, edits, keep, "latents"))
        return _conditional("Edit", request, options, messages.read_latents)

    @Method
    def edit_both(
        self, source: Source, edits: Edits = (), keep: Iterable[str] = (), **options: Unpack[ConditionalOptions]
    ) -> Call[tuple[Bytes, Floats]]:
        """As `edit`, to images uint8 [N, S, S, 3] and latents float32 [N, D]."""
        request = messages.edit_request(StreamEdit(source, edits, keep, "both"))
        return _conditional("Edit", request, options, messages.read_both)

    @Method
    def interpolate(
        self, start: Source, end: Source, steps: int, walk: Walk = "linear", **options: Unpack[Options]
    ) -> Call[Bytes]:
        """Walks from images or latents to others.

        Args:
            start: Where to begin: images, or latents float32 [N, D].
            end: Where to end, as many; image i of `start` goes with image i of `end`.
            steps: Points on each walk with both of its ends, at least 2.
            walk: "linear", or "spherical": an arc around the mean of faces.
            options: Model, priority, timeout, request_id.

        Returns:
            Images, uint8 [N, steps, S, S, 3].
        """
        request = messages.walk_request(start, end, steps, walk, "images")
        return Call("Interpolate", request, options, lambda got: _by_walk(messages.read_images(got), steps))

    @Method
    def interpolate_latents(
        self, start: Source, end: Source, steps: int, walk: Walk = "linear", **options: Unpack[Options]
    ) -> Call[Floats]:
        """As `interpolate`, to latents float32 [N, steps, D]; nothing is decoded."""
        request = messages.walk_request(start, end, steps, walk, "latents")
        return Call("Interpolate", request, options, lambda got: _by_walk(messages.read_latents(got), steps))

    @Method
    def sample(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        distribution: Distribution = "auto",
        **options: Unpack[ConditionalOptions],
    ) -> Call[Bytes]:
        """Draws new images.

        Args:
            count: How many.
            seed: The same seed gives the same latents on every server of the same model, and the same images up to
                the precision of the bundle's engine; a longer draw begins with the samples of a shorter one.
            temperature: Factor on the distance from the distribution's mean, 0 to 10.
            distribution: "standard", N(0, I); "fitted", the Gaussian that fits the posteriors of real images;
                "mixture", the mixture of Gaussians that does; "auto", the closest to them that the model has.
            options: Having, lacking, model, priority, timeout, request_id.

        Returns:
            Images, uint8 [count, S, S, 3].
        """
        request = messages.sample_request(count, seed, temperature, distribution, "images")
        return _conditional("Sample", request, options, messages.read_images)

    @Method
    def sample_latents(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        distribution: Distribution = "auto",
        **options: Unpack[ConditionalOptions],
    ) -> Call[Floats]:
        """As `sample`, to latents float32 [count, D]; nothing is decoded."""
        request = messages.sample_request(count, seed, temperature, distribution, "latents")
        return _conditional("Sample", request, options, messages.read_latents)

    def _prepare(self, call: Call[Any]) -> tuple[Callable[..., Any], RetryBudget]:
        """What sends a call, given the `timeout` of a try in seconds, and how often it may."""
        options = self._with_defaults(call.options)
        messages.address(call.request, options)
        send = functools.partial(self._method(call.method, options), call.request)
        return send, RetryBudget(self._retries, self._retry_overload, options["timeout"])


class Client(Calls, AbstractContextManager["Client"]):
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

    def _ask(self, method: Callable[..., Call[T]], *arguments: Any, **options: Any) -> T:
        call = method(self, *arguments, **options)
        send, budget = self._prepare(call)
        while True:
            try:
                answer = send(timeout=budget.remaining())
            except grpc.RpcError as error:
                time.sleep(budget.pause_after(self._error(error)))
            else:
                return call.read(answer)


class AsyncClient(Calls, AbstractAsyncContextManager["AsyncClient"]):
    """`Client` for asyncio: the same methods with the same arguments and results, to be awaited.

    Construct it inside a running event loop, use it there only, and as an asynchronous context manager.
    """

    _channels = grpc.aio

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
        requests = messages.async_stream_requests if isinstance(steps, AsyncIterable) else messages.stream_requests
        with self._answers(requests, steps, options) as answers:
            async for answer in answers:
                yield messages.read_stream_answer(answer)

    def stream(self, **options: Unpack[Options]) -> AsyncSlider:
        """As `Client.stream`; an asynchronous context manager."""
        return AsyncSlider(*self._stream(options), self._error)

    async def _ask(self, method: Callable[..., Call[T]], *arguments: Any, **options: Any) -> T:
        call = method(self, *arguments, **options)
        send, budget = self._prepare(call)
        while True:
            try:
                answer = await send(timeout=budget.remaining())
            except grpc.RpcError as error:
                await asyncio.sleep(budget.pause_after(self._error(error)))
            else:
                return call.read(answer)


def _conditional(method: str, request: Any, options: ConditionalOptions, read: Callable[[Any], T]) -> Call[T]:
    messages.write_conditions(request, options.pop("having", ()), options.pop("lacking", ()))
    return Call(method, request, options, read)


def _by_walk(points: npt.NDArray[Any], steps: int) -> npt.NDArray[Any]:
    return points.reshape(-1, steps, *points.shape[1:])
