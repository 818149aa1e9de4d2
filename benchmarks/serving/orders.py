"""Requests of every kind and size, drawn at random, each with the check of its answer."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.sampling import Gaussian, linear, spherical
from protos import dfcvae_pb2 as pb
from serving.answers import Answers, Bytes, Deviation, Floats, WrongAnswer
from serving.process import ScriptError

Kind = Literal["encode", "encode-files", "decode", "decode-png", "edit", "edit-latents", "edit-files", "walk", "sample"]
KINDS: tuple[Kind, ...] = (
    "encode",
    "encode-files",
    "decode",
    "decode-png",
    "edit",
    "edit-latents",
    "edit-files",
    "walk",
    "sample",
)

MAX_FILES = 16
"""Most image files in a request: their compression would otherwise take most of the machine."""

_PREPARED = 6
_PNG = pb.ImageOutput(format=pb.IMAGE_FORMAT_PNG)


@dataclass(frozen=True)
class Order:
    """A request and how to tell whether its answer is right.

    Attributes:
        method: Name of the RPC.
        request: Its message.
        images: Images or latents in the answer.
        check: Takes the answer; raises WrongAnswer.
    """

    method: str
    request: Any
    images: int
    check: Callable[[Any], None]


class Menu:
    """Draws requests about the pictures of `answers`.

    Args:
        answers: Pictures and what the bundle makes of them.
        max_images: Largest request, images; at most as many as there are pictures.
        kinds: What to draw from, each with the same chance.

    Attributes:
        deviation: What all answers that were checked so far differed by.
    """

    def __init__(self, answers: Answers, max_images: int, kinds: tuple[Kind, ...] = KINDS) -> None:
        if max_images > len(answers.pictures):
            raise ScriptError(f"requests of {max_images} images need as many pictures, not {len(answers.pictures)}")
        self.answers = answers
        self.deviation = Deviation()
        self._max_images = max_images
        self._kinds = kinds
        rng = np.random.default_rng(5)
        self._walks = [self._walk(rng) for _ in range(_PREPARED)] if "walk" in kinds else []
        self._samples = [self._sample(rng) for _ in range(_PREPARED)] if "sample" in kinds else []

    def draw(self, rng: np.random.Generator) -> Order:
        """A request of a random kind and size; small sizes are as frequent as large ones, octave by octave."""
        kind = self._kinds[rng.integers(len(self._kinds))]
        count = self._size(rng)
        start = int(rng.integers(len(self.answers.pictures) - count + 1))
        return self.order(kind, slice(start, start + count), int(rng.integers(len(self.answers.edits))))

    def order(self, kind: Kind, rows: slice, edit: int) -> Order:
        """A request of one kind.

        Args:
            kind: Of which kind.
            rows: Which pictures; files, walks and samples choose their own by it.
            edit: Which of the edits.
        """
        makers: dict[Kind, Callable[[slice, int], Order]] = {
            "encode": self._encode,
            "encode-files": self._encode_files,
            "decode": self._decode,
            "decode-png": self._decode_png,
            "edit": self._edit,
            "edit-latents": self._edit_latents,
            "edit-files": self._edit_files,
            "walk": lambda rows, _: self._walks[rows.start % len(self._walks)],
            "sample": lambda rows, _: self._samples[rows.start % len(self._samples)],
        }
        return makers[kind](rows, edit)

    def _encode(self, rows: slice, edit: int) -> Order:
        answers = self.answers
        mu, log_var = answers.mu[rows], answers.log_var[rows]

        def check(answer: pb.EncodeResponse) -> None:
            answers.check_latents(_floats(answer.mu), mu, self.deviation)
            answers.check_latents(_floats(answer.log_var), log_var, self.deviation)

        return Order("Encode", pb.EncodeRequest(images=_raw(answers.pictures[rows])), len(mu), check)

    def _encode_files(self, rows: slice, edit: int) -> Order:
        answers, rows = self.answers, self._few(rows)
        mu = answers.file_mu[rows]

        def check(answer: pb.EncodeResponse) -> None:
            answers.check_latents(_floats(answer.mu), mu, self.deviation)

        return Order("Encode", pb.EncodeRequest(images=_files(answers.files[rows])), len(mu), check)

    def _decode(self, rows: slice, edit: int) -> Order:
        request = pb.DecodeRequest(latents=_latents(self.answers.mu[rows]))
        return self._images("Decode", request, self.answers.decoded[rows])

    def _decode_png(self, rows: slice, edit: int) -> Order:
        rows = self._few(rows)
        request = pb.DecodeRequest(latents=_latents(self.answers.mu[rows]), output=_PNG)
        return self._images("Decode", request, self.answers.decoded[rows])

    def _edit(self, rows: slice, edit: int) -> Order:
        request = pb.EditRequest(images=_raw(self.answers.pictures[rows]), **moves(self.answers, edit))
        return self._images("Edit", request, self.answers.edited[edit][rows])

    def _edit_latents(self, rows: slice, edit: int) -> Order:
        answers, both = self.answers, pb.EDIT_RESULT_IMAGES_AND_LATENTS
        request = pb.EditRequest(latents=_latents(answers.mu[rows]), result=both, **moves(answers, edit))
        return self._images("Edit", request, answers.edited[edit][rows], answers.edited_mu[edit][rows])

    def _edit_files(self, rows: slice, edit: int) -> Order:
        rows = self._few(rows)
        request = pb.EditRequest(images=_files(self.answers.files[rows]), output=_PNG, **moves(self.answers, 0))
        return self._images("Edit", request, self.answers.file_edited[rows])

    def _few(self, rows: slice) -> slice:
        """Not many rows, within those that there are files of."""
        count = min(rows.stop - rows.start, MAX_FILES)
        first = rows.start % (len(self.answers.files) - count + 1)
        return slice(first, first + count)

    def _images(self, method: str, request: Any, images: Bytes, latents: Floats | None = None) -> Order:
        def check(answer: Any) -> None:
            self.answers.check_images(_pixels(answer.images), images, self.deviation)
            if latents is not None:
                self.answers.check_latents(_floats(answer.latents), latents, self.deviation)

        return Order(method, request, len(images), check)

    def _walk(self, rng: np.random.Generator) -> Order:
        """A walk between latents; its points are computed here once, so that a check costs nothing."""
        total = max(2, self._size(rng))
        steps = int(rng.integers(2, min(total, 16) + 1))
        first, last = (rng.integers(len(self.answers.mu), size=max(1, total // steps)) for _ in range(2))
        arc = bool(rng.integers(2))
        ends = self.answers.mu[first], self.answers.mu[last]
        points = (spherical if arc else linear)(*ends, steps)
        request = pb.InterpolateRequest(
            start=pb.WalkEnd(latents=_latents(ends[0])),
            end=pb.WalkEnd(latents=_latents(ends[1])),
            steps=steps,
            walk=pb.WALK_SPHERICAL if arc else pb.WALK_LINEAR,
            result=pb.EDIT_RESULT_IMAGES_AND_LATENTS,
        )
        return self._images("Interpolate", request, self.answers.decode(points), points)

    def _sample(self, rng: np.random.Generator) -> Order:
        count, seed, temperature = self._size(rng), int(rng.integers(2**32)), float(np.float32(rng.uniform(0.5, 1.0)))
        latents = Gaussian.standard(self.answers.latent_dim).draw(count, seed, temperature)
        request = pb.SampleRequest(
            count=count,
            seed=seed,
            temperature=temperature,
            distribution=pb.DISTRIBUTION_STANDARD,
            result=pb.EDIT_RESULT_IMAGES_AND_LATENTS,
        )
        return self._images("Sample", request, self.answers.decode(latents), latents)

    def _size(self, rng: np.random.Generator) -> int:
        return min(self._max_images, int(np.exp(rng.uniform(0, np.log(self._max_images + 1)))))


def moves(answers: Answers, index: int) -> dict[str, Any]:
    """Edit number `index` as fields of a request."""
    pairs, keep = answers.edits[index]
    edits = [
        pb.Edit(attribute=target, strength=strength)
        if isinstance(target, str)
        else pb.Edit(direction=target.astype("<f4").tobytes(), strength=strength)
        for target, strength in pairs
    ]
    return {"edits": edits, "keep": keep}


async def stream_once(
    stub: Any, menu: Menu, rng: np.random.Generator, *, messages: int, timeout: float, pause: float = 0.0
) -> int:
    """Opens an EditStream, sends messages without waiting for answers, and checks that these come in order.

    Every other message has no source: it edits the last one's latents.

    Args:
        stub: The service's methods.
        menu: Whose pictures are sent.
        rng: What chooses among them.
        messages: How many.
        timeout: Deadline of the stream, seconds.
        pause: How long the reader sleeps before it reads at all, seconds.

    Returns:
        Images that were answered.

    Raises:
        WrongAnswer: An answer is missing, out of order, an error, or not right.
        grpc.RpcError: The stream failed.
    """
    answers = menu.answers
    plan: list[tuple[pb.EditStreamRequest, Bytes]] = []
    for number in range(messages):
        edit = int(rng.integers(len(answers.edits)))
        if number % 2 == 0:
            count = min(8, int(rng.integers(1, len(answers.pictures) + 1)))
            start = int(rng.integers(len(answers.pictures) - count + 1))
            rows = slice(start, start + count)
        request = pb.EditStreamRequest(id=number + 1, **moves(answers, edit))
        if number % 2 == 0:
            request.images.CopyFrom(_raw(answers.pictures[rows]))
        plan.append((request, answers.edited[edit][rows]))
    call = stub.EditStream(timeout=timeout)

    async def send() -> None:
        for request, _ in plan:
            await call.write(request)
        await call.done_writing()

    sending = asyncio.ensure_future(send())
    try:
        await asyncio.sleep(pause)
        for request, expected in plan:
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise WrongAnswer(f"the stream ended before answer {request.id} of {messages}")
            if answer.id != request.id:
                raise WrongAnswer(f"answer {answer.id} came where {request.id} was due")
            if answer.WhichOneof("outcome") != "edited":
                raise WrongAnswer(f"answer {answer.id} is an error: {answer.error.message}")
            answers.check_images(_pixels(answer.edited.images), expected, menu.deviation)
        if await call.read() is not grpc.aio.EOF:
            raise WrongAnswer("the stream goes on after its last answer")
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)  # what stopped it, the reader has seen too
        call.cancel()
    return sum(len(expected) for _, expected in plan)


def _raw(images: Bytes) -> pb.ImageBatch:
    count, height, width, _ = images.shape
    return pb.ImageBatch(raw=pb.RawImages(count=count, height=height, width=width, data=images.tobytes()))


def _files(files: list[bytes]) -> pb.ImageBatch:
    return pb.ImageBatch(files=pb.EncodedImages(files=files))


def _latents(latents: Floats) -> pb.LatentBatch:
    return pb.LatentBatch(count=latents.shape[0], dim=latents.shape[1], data=latents.astype("<f4").tobytes())


def _floats(batch: pb.LatentBatch) -> Floats:
    return np.frombuffer(batch.data, "<f4").reshape(batch.count, batch.dim)


def _pixels(batch: pb.ImageBatch) -> Bytes:
    if batch.WhichOneof("images") == "files":
        opened = [Image.open(io.BytesIO(file)) for file in batch.files.files]
        return np.stack([np.asarray(image.convert("RGB")) for image in opened])
    raw = batch.raw
    pixels: npt.NDArray[np.uint8] = np.frombuffer(raw.data, np.uint8)
    return pixels.reshape(raw.count, raw.height, raw.width, 3)
