"""The synchronous client: numpy or image files in, numpy or image files out.

Shapes: N images of side S, latents of dimension D; `Client.model()` says S and D.
"""

import time
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import TypeVar

import grpc
from typing_extensions import Self, Unpack

from engine.client import messages
from engine.client.connection import Connection
from engine.client.errors import ClientError
from engine.client.slider import Slider
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


class Client(Connection):
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are under way are cancelled."""
        self._closed = True
        self._channel.close()

    def model(self, **options: Unpack[Options]) -> Model:
        """What the server serves."""
        return self._run(messages.get_model(), options)

    def encode(self, images: Images, **options: Unpack[Options]) -> Posterior:
        """Images to the parameters of their posteriors."""
        return self._run(messages.encode(images), options)

    def decode(self, latents: Floats, **options: Unpack[Options]) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, S, S, 3]."""
        return self._run(messages.decode(latents), options)

    def decode_files(
        self, latents: Floats, file_format: FileFormat = "PNG", quality: int = 0, **options: Unpack[Options]
    ) -> list[bytes]:
        """Latents, float32 [N, D], to one image file each; quality 1 to 100, 0 for the server's default."""
        return self._run(messages.decode_files(latents, file_format, quality), options)

    def edit(
        self, source: Images | Floats, edits: Edits, keep: Iterable[str] = (), **options: Unpack[Options]
    ) -> Bytes:
        """Moves images or latents along directions.

        Args:
            source: Images, or latents float32 [N, D].
            edits: Strengths by attribute name, or pairs of a name or an explicit direction float32 [D] and a
                strength. The unit is the length of the attribute's mean difference, as protos/dfcvae.proto defines it.
            keep: Attributes that must stay as they are: their directions are projected out of the edits.
            options: Model, priority, timeout, request_id.

        Returns:
            Edited images, uint8 [N, S, S, 3].
        """
        return self._run(messages.edit(source, edits, keep), options)

    def edit_files(
        self,
        source: Images | Floats,
        edits: Edits,
        keep: Iterable[str] = (),
        file_format: FileFormat = "PNG",
        quality: int = 0,
        **options: Unpack[Options],
    ) -> list[bytes]:
        """As `edit`, to one image file each; quality 1 to 100, 0 for the server's default."""
        return self._run(messages.edit_files(source, edits, keep, file_format, quality), options)

    def edit_latents(
        self, source: Images | Floats, edits: Edits, keep: Iterable[str] = (), **options: Unpack[Options]
    ) -> Floats:
        """As `edit`, to latents float32 [N, D]; nothing is decoded."""
        return self._run(messages.edit_latents(source, edits, keep), options)

    def edit_both(
        self, source: Images | Floats, edits: Edits, keep: Iterable[str] = (), **options: Unpack[Options]
    ) -> tuple[Bytes, Floats]:
        """As `edit`, to images uint8 [N, S, S, 3] and latents float32 [N, D]."""
        return self._run(messages.edit_both(source, edits, keep), options)

    def interpolate(
        self,
        start: Images | Floats,
        end: Images | Floats,
        steps: int,
        walk: Walk = "linear",
        **options: Unpack[Options],
    ) -> Bytes:
        """Walks from images or latents to others.

        Args:
            start: Where to begin: images, or latents float32 [N, D].
            end: Where to end, as many; image i of `start` goes with image i of `end`.
            steps: Points on each walk with both of its ends, at least 2.
            walk: "linear", or "spherical": an arc around the origin.
            options: Model, priority, timeout, request_id.

        Returns:
            Images, uint8 [N, steps, S, S, 3].
        """
        return self._run(messages.interpolate(start, end, steps, walk), options)

    def interpolate_latents(
        self,
        start: Images | Floats,
        end: Images | Floats,
        steps: int,
        walk: Walk = "linear",
        **options: Unpack[Options],
    ) -> Floats:
        """As `interpolate`, to latents float32 [N, steps, D]; nothing is decoded."""
        return self._run(messages.interpolate_latents(start, end, steps, walk), options)

    def sample(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        distribution: Distribution = "auto",
        **options: Unpack[Options],
    ) -> Bytes:
        """Draws new images.

        Args:
            count: How many.
            seed: The same seed gives the same latents on every server of the same model, and the same images up to
                the precision of the bundle's engine; a longer draw begins with the samples of a shorter one.
            temperature: Factor on the distance from the distribution's mean, 0 to 10.
            distribution: "standard", N(0, I); "fitted", to the posteriors of real images; "auto", fitted where the
                model has it.
            options: Model, priority, timeout, request_id.

        Returns:
            Images, uint8 [count, S, S, 3].
        """
        return self._run(messages.sample(count, seed, temperature, distribution), options)

    def sample_latents(
        self,
        count: int,
        seed: int = 0,
        temperature: float = 1.0,
        distribution: Distribution = "auto",
        **options: Unpack[Options],
    ) -> Floats:
        """As `sample`, to latents float32 [count, D]; nothing is decoded."""
        return self._run(messages.sample_latents(count, seed, temperature, distribution), options)

    def edit_stream(
        self, steps: Iterable[StreamEdit], **options: Unpack[Options]
    ) -> Generator[Edited | ClientError, None, None]:
        """Edits one after the other: a video, or a slider that is recorded.

        Steps are taken as fast as the server reads them, from a thread of their own, so many are on their way at once.
        An exception of `steps` comes out after the answers to the steps before it.

        Args:
            steps: What to do.
            options: Model, priority, request_id, and timeout: of the whole stream, none when it isn't given.

        Yields:
            One answer per step, in their order: its results, or what was wrong with the step; the stream goes on.
        """
        merged, method = self._stream(options)
        failures: list[Exception] = []
        requests = messages.stream_requests(steps, merged, failures)
        call = method(requests)
        try:
            for answer in call:
                yield messages.read_stream_answer(answer)
        except grpc.RpcError as error:
            raise self._error(error) from None
        finally:
            call.cancel()
        if failures:
            raise failures[0]

    def stream(self, **options: Unpack[Options]) -> Slider:
        """Opens a stream for edits of which each waits for its answer; use it as a context manager.

        The timeout among the options is that of the whole stream; there is none when it isn't given.
        """
        merged, method = self._stream(options)
        return Slider(method, merged, self._error)

    def health(self) -> str:
        """Whether the server is ready for calls: "SERVING" or "NOT_SERVING"; neither token nor model matters."""
        return self._run(messages.health(), {})

    def _run(self, call: messages.Call[T], options: Options) -> T:
        merged = self._with_defaults(options)
        messages.address(call.request, merged)
        patience = self._patience(merged)
        method = self._methods[call.method]
        while True:
            try:
                answer = method(call.request, **self._call_arguments(merged, patience.remaining()))
            except grpc.RpcError as error:
                time.sleep(patience.pause_after(self._error(error)))
            else:
                return call.read(answer)
