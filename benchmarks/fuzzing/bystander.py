"""A well-behaved client, which must not notice what others send."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType

import grpc
import numpy as np

from engine.serving.service import SERVICE_NAME
from fuzzing.cases import Facts
from protos import dfcvae_pb2 as pb

_PAUSE_S = 0.05
_TIMEOUT_S = 60.0
# Two thousand calls in one burst, one of the abuses, are more than the server can look at for a moment.
_TRIES = 3
_RETRY_S = 0.5
_LEVELS = 8
"""Beside others, rounding depends on the batch that a request gets into."""


class Bystander:
    """Sends the same good request again and again while its context is open, on a connection of its own.

    Args:
        target: HOST:PORT of the server.
        facts: What good requests need.

    Attributes:
        answered: How many requests were answered as they should.
        again: How many of them were refused for want of room at first.
        faults: What went wrong with the others, a sentence each.
    """

    def __init__(self, target: str, facts: Facts) -> None:
        latents = np.linspace(-1, 1, facts.latent_dim, dtype="<f4")
        self._request = pb.EditRequest(
            latents=pb.LatentBatch(count=1, dim=facts.latent_dim, data=latents.tobytes()),
            edits=[pb.Edit(attribute=facts.attributes[0], strength=1)],
            result=pb.EDIT_RESULT_IMAGES_AND_LATENTS,
        ).SerializeToString()
        self._target = target
        self.answered = 0
        self.again = 0
        self.faults: list[str] = []

    async def __aenter__(self) -> Bystander:
        self._channel = grpc.aio.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)])
        self._call = self._channel.unary_unary(f"/{SERVICE_NAME}/Edit")
        self._expected = await self._call(self._request, timeout=_TIMEOUT_S)
        self._going = asyncio.create_task(self._go())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._going.cancel()
        with suppress(asyncio.CancelledError):
            await self._going
        if error is None:
            await self._check(levels=0)
        await self._channel.close()

    async def _go(self) -> None:
        while True:
            await self._check(_LEVELS)
            await asyncio.sleep(_PAUSE_S)

    async def _check(self, levels: int) -> None:
        """Sends the request; its pixels may differ from those at the beginning by some levels, its latents not."""
        for tried in range(1, _TRIES + 1):
            try:
                answer = await self._call(self._request, timeout=_TIMEOUT_S)
                break
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or tried == _TRIES:
                    self.faults.append(f"a good request of another client got {error.code().name}: {error.details()}")
                    return
                self.again += tried == 1
                await asyncio.sleep(_RETRY_S)
        now, then = pb.EditResponse.FromString(answer), pb.EditResponse.FromString(self._expected)
        pixels, before = (np.frombuffer(one.images.raw.data, np.uint8).astype(int) for one in (now, then))
        if now.latents != then.latents or pixels.shape != before.shape or np.abs(pixels - before).max() > levels:
            self.faults.append("a good request of another client got another answer than before")
            return
        self.answered += 1
