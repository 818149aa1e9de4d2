"""One request: what must be done for every one of them, in one place that no method gets past.

A model computes for a `RequestContext`, and only `RequestScope.admit` gives one: when the model is leased, the deadline
read, the size checked, the client's rate spent, and the room held.

Shapes: N images of side S, latents of dimension D.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from engine.arrays import Bytes, Floats
from engine.errors import Overloaded
from engine.images import DEFAULT_QUALITY
from engine.models.model import RequestContext
from engine.models.repository import ModelRepository
from engine.service.request_parser import OutputSpec, RequestParser, latent_batch, read_priority, write_pixels

_Response = TypeVar("_Response", bound=Message)


class Call(Protocol):
    """The call that a request came in; `engine.service.interceptor.CallScope` is one."""

    @property
    def client(self) -> str:
        """Whose call it is."""

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None without one."""

    def spend(self, images: int) -> None:
        """Takes images and latents out of the client's share.

        Raises:
            RateLimited: When it has used that up.
        """

    def give_back(self, images: int) -> None:
        """Puts back what was spent on a request that the server then had no room for."""

    def count(self, images: int) -> None:
        """Counts what was spent and stays so."""


class RequestScope:
    """A request while it is worked on, as a context that leases its model.

    Args:
        repository: The models that are served.
        call: Which the request came in.
        request: With a priority.
        model: Name of its model; "" for the default.

    Attributes:
        model: Stays open until the scope's end.
        parser: Reads the request for this model.

    Raises:
        InvalidRequest: When the priority isn't known.
        UnknownModel: When there is no such model.
    """

    def __init__(self, repository: ModelRepository, call: Call, request: Any, model: str) -> None:
        remaining = call.time_remaining()
        deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
        self._call = call
        self._context = RequestContext(deadline, call.client, read_priority(request))
        self._one_of_several = len(repository.names) > 1
        self.model = repository.get(model)
        bundle = self.model.bundle
        self.parser = RequestParser(bundle.manifest, bundle.directions, self.model.max_images)
        self._lease = self.model.lease()

    def __enter__(self) -> "RequestScope":
        self._lease.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, trace)
        if self._one_of_several and isinstance(error, Overloaded):
            error.recheck = None  # whoever looks at calls before their messages can't tell for which model they are

    @contextmanager
    def admit(
        self, count: int, field: str = "source", verb: str = "send", *, decodes: bool = False
    ) -> Iterator[RequestContext]:
        """To be entered around all work on so many images or latents; gives the context that a model computes for.

        What the server then has no room for costs the client nothing.

        Args:
            count: How many.
            field: Which field says so.
            verb: What the request does with them.
            decodes: Whether room is held for decoding them, for a request that computes something else first.

        Raises:
            InvalidRequest: When they are none, or more than a request may have.
            RateLimited: When the client has used up its share.
            Overloaded: When there is no room for decoding them.
        """
        self.parser.check_count(count, field, verb)
        self._call.spend(count)
        try:
            if decodes:
                with self.model.room(count, self._context.client) as room:
                    yield self._context._replace(room=room)
            else:
                yield self._context
        except Overloaded:
            self._call.give_back(count)
            raise
        except BaseException:
            self._call.count(count)
            raise
        self._call.count(count)

    async def respond(
        self, message: _Response, output: OutputSpec, images: Bytes | None, latents: Floats | None = None
    ) -> _Response:
        """Puts into a response what is to come back, and gives the response.

        Args:
            message: Is empty, and has the fields `images` and `latents`.
            output: What is wanted.
            images: Resulting images, uint8 [N, S, S, 3], if there are any.
            latents: Resulting latents, float32 [N, D].
        """
        fields: Any = message
        if output.latents and latents is not None:
            fields.latents.CopyFrom(latent_batch(latents))
        if images is None:
            return message
        if output.file_format is None:
            write_pixels(fields.images.raw, images)
            return message
        quality, client = output.quality or DEFAULT_QUALITY, self._context.client
        fields.images.files.files.extend(await self.model.codec.encode(images, output.file_format, quality, client))
        return message
