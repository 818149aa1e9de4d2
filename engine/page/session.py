"""What one visitor's page asks for, and the faces that it is about.

Shapes: N images of side S, latents of dimension D.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from engine.arrays import Bytes, Floats
from engine.client import AsyncClient, ClientError, Model, arguments
from engine.client.slider import AsyncSlider
from engine.client.values import Edits
from engine.errors import InvalidRequest
from engine.page.photos import NoFaceError, Photos

SLOTS = ("face", "other")
"""The face that is edited, and the one that it may be blended with."""
MAX_SAMPLES = 24
_MODEL_AGE_S = 2.0
_RETRY_S = 1.0

# With these the stream goes on: they say what is wrong with one request.
_REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND")
_UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED")

# The field of the request that a sentence of the server's begins with: visitors see none.
_FIELD = re.compile(r"^\w+\[\d+\][.\w]*:? ")

# What frames photos for a model.
_photos_of = lru_cache(maxsize=1)(Photos)


class Server:
    """The server as all sessions see it.

    The client has retries switched off, as pages ask again themselves. An edit may take `timeout` seconds.
    """

    def __init__(self, client: AsyncClient, timeout: float, max_photo_bytes: int) -> None:
        self.client = client
        self.timeout = timeout
        self.max_photo_bytes = max_photo_bytes
        self._model: Model | None = None
        self._asked = -_MODEL_AGE_S

    async def model(self) -> Model:
        """What it serves, as it said lately."""
        if self._model is None or time.monotonic() - self._asked >= _MODEL_AGE_S:
            self._model = await self.client.model()
            self._asked = time.monotonic()
        return self._model


class Answer(NamedTuple):
    """What the page is told: what is to be written as JSON, and images, uint8 [N, S, S, 3]."""

    header: dict[str, Any]
    images: Bytes | None = None


class Session:
    """One visitor: the latents of their faces, and a stream for their edits. Whatever is asked is asked in turn."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._fingerprint = ""
        self._faces: dict[str, Floats] = {}
        self._stream: AsyncSlider | None = None
        self._source: Floats | None = None  # that the stream has
        self._asks: dict[Any, Callable[[dict[str, Any], bytes], Awaitable[Answer]]] = {
            "model": self._model,
            "photo": self._photo,
            "sample": self._sample,
            "samples": self._samples,
            "edit": self._edit,
        }

    async def close(self) -> None:
        """Forgets everything."""
        self._faces.clear()
        await self._end_stream()

    async def answer(self, ask: dict[str, Any], file: bytes = b"") -> Answer:
        """Does what `ask` names, with the photo that it may bring, or says in a sentence why not.

        Returns:
            Where it failed, the header has `error`, a sentence; `retry_s`, after which the same may go well; `reload`,
            when the page must begin anew; or `middle`, whether that of the photo can be taken without `align`.
        """
        try:
            what = self._asks[arguments.choice("ask", arguments.text("ask", ask.get("ask")), self._asks)]
            if what != self._model and (await self._server.model()).fingerprint != self._fingerprint:
                return Answer({"error": "The server has another model now.", "reload": True})
            return await what(ask, file)
        except ClientError as error:
            return Answer(self._told(error))
        except (NoFaceError, InvalidRequest) as error:
            return Answer({"error": f"The photo {error}.", "middle": isinstance(error, NoFaceError)})
        except (ValueError, TypeError) as error:
            return Answer({"error": str(error)})
        except MemoryError:
            return Answer({"error": "There is not enough memory for this photo; make it smaller."})

    async def _model(self, _ask: dict[str, Any], _file: bytes) -> Answer:
        model = await self._server.model()
        if model.fingerprint != self._fingerprint:
            await self.close()
            self._fingerprint = model.fingerprint
        return Answer(
            {
                "name": model.name,
                "size": model.image_size,
                "attributes": [attribute.name for attribute in model.attributes],
                "conditions": [attribute.name for attribute in model.attributes if attribute.can_condition],
                "engine": f"{model.backend} {model.precision}",
                "target": self._server.client.target,
                "max_photo_bytes": self._server.max_photo_bytes,
            }
        )

    async def _photo(self, ask: dict[str, Any], file: bytes) -> Answer:
        slot = arguments.choice("slot", ask.get("slot"), SLOTS)
        photos = await asyncio.to_thread(_photos_of, (await self._server.model()).frame)
        pixels, note = await photos.framed(file, align=bool(ask.get("align", True)))
        self._faces[slot] = (await self._server.client.encode(pixels[np.newaxis])).mu
        return Answer({"note": note}, pixels[np.newaxis])

    async def _sample(self, ask: dict[str, Any], _file: bytes) -> Answer:
        slot = arguments.choice("slot", ask.get("slot"), SLOTS)
        pick = arguments.whole("pick", ask.get("pick"), 0, MAX_SAMPLES - 1)
        drawn = await self._server.client.sample_latents(pick + 1, **_draw(ask))
        self._faces[slot] = drawn[pick:]
        return Answer({}, await self._server.client.decode(self._faces[slot], priority="interactive"))

    async def _samples(self, ask: dict[str, Any], _file: bytes) -> Answer:
        count = arguments.whole("count", ask.get("count"), 1, MAX_SAMPLES)
        return Answer({}, await self._server.client.sample(count, **_draw(ask)))

    async def _edit(self, ask: dict[str, Any], _file: bytes) -> Answer:
        mix = arguments.between("mix", ask.get("mix", 0.0), 0, 1)
        if "face" not in self._faces:
            raise ValueError("There is no face yet: add a photo, or take one that the model draws.")
        face = self._faces["face"]
        if mix and "other" in self._faces:
            face = (1 - np.float32(mix)) * face + np.float32(mix) * self._faces["other"]
        return Answer({}, await self._slide(face, ask.get("strengths", {}), ask.get("keep", [])))

    async def _slide(self, face: Floats, strengths: Edits, keep: list[str]) -> Bytes:
        """Edits a face on the stream; one that has ended meanwhile, having been silent for long, is opened again."""
        fresh = self._stream is None
        try:
            return await self._slide_once(face, strengths, keep)
        except ClientError as error:
            if error.status in _REFUSALS:
                raise
            await self._end_stream()
            if fresh or error.status not in _UNREACHABLE:
                raise
        return await self._slide_once(face, strengths, keep)

    async def _slide_once(self, face: Floats, strengths: Edits, keep: list[str]) -> Bytes:
        if self._stream is None:
            self._stream = self._server.client.stream(priority="interactive")
        known = self._source is not None and np.array_equal(face, self._source)
        edit = self._stream.edit(None if known else face, strengths, keep)
        try:
            images = await asyncio.wait_for(edit, self._server.timeout)
        except asyncio.TimeoutError:
            raise ClientError("DEADLINE_EXCEEDED", f"no answer within {self._server.timeout:g} s") from None
        self._source = face
        return images

    async def _end_stream(self) -> None:
        stream, self._stream, self._source = self._stream, None, None
        if stream is not None:
            await stream.close()

    def _told(self, error: ClientError) -> dict[str, Any]:
        """A failed call, to somebody who didn't make it."""
        target = self._server.client.target
        if error.status in _UNREACHABLE:
            return {"error": f"The server at {target} can't be reached.", "detail": error.message, "retry_s": _RETRY_S}
        if error.status == "RESOURCE_EXHAUSTED":
            return {"error": "The server is busy.", "detail": error.message, "retry_s": error.retry_after_s or _RETRY_S}
        if error.status == "UNAUTHENTICATED":
            return {"error": f"The server at {target} wants another token than this page has.", "retry_s": 5 * _RETRY_S}
        sentence = _FIELD.sub("", error.message)
        return {"error": sentence[:1].upper() + sentence[1:]}


def _draw(ask: dict[str, Any]) -> dict[str, Any]:
    """How faces are drawn; the client refuses what can't be."""
    return {name: ask[name] for name in ("seed", "temperature", "having", "lacking") if name in ask}
