"""The asyncio client gives what the synchronous one gives."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from servers import ServerProcess
from tiny_model import LATENT_DIM, latents_of, random_images

from engine.client import AsyncClient, Client, ClientError

IMAGES, OTHERS = random_images(3, seed=1), random_images(3, seed=2)
LATENTS = latents_of(IMAGES)
EDITS = [("Smiling", 1.5), (np.linspace(-4, 4, LATENT_DIM, dtype=np.float32), 2.0)]

CALLS: dict[str, Callable[[Any], Any]] = {
    "model": lambda client: client.model(),
    "encode": lambda client: client.encode(IMAGES, priority="background"),
    "decode": lambda client: client.decode(LATENTS, timeout=None),
    "decode_files": lambda client: client.decode_files(LATENTS, "WEBP", 80),
    "edit": lambda client: client.edit(IMAGES, EDITS, keep=["Male"], request_id="mine"),
    "edit_files": lambda client: client.edit_files(LATENTS, EDITS, (), "JPEG"),
    "edit_latents": lambda client: client.edit_latents(IMAGES, EDITS),
    "edit_both": lambda client: client.edit_both(IMAGES, EDITS),
    "interpolate": lambda client: client.interpolate(IMAGES, OTHERS, 5),
    "interpolate_latents": lambda client: client.interpolate_latents(IMAGES, LATENTS, 2, "spherical"),
    "sample": lambda client: client.sample(4, seed=9),
    "sample_latents": lambda client: client.sample_latents(4, 9, 0.5, "standard"),
    "health": lambda client: client.health(),
}


def check_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, tuple):
        for mine, theirs in zip(one, other, strict=True):
            check_same(mine, theirs)
    else:
        assert np.all(one == other)


@pytest.mark.parametrize("name", CALLS)
def test_both_clients_give_the_same(server: ServerProcess, name: str) -> None:
    async def ask() -> Any:
        async with AsyncClient(server.target) as client:
            return await CALLS[name](client)

    with Client(server.target) as client:
        expected = CALLS[name](client)
    check_same(asyncio.run(ask()), expected)


def test_shapes_of_walks_and_samples(server: ServerProcess) -> None:
    with Client(server.target) as client:
        walks = client.interpolate(IMAGES, OTHERS, 5)
        assert walks.shape == (3, 5, *IMAGES.shape[1:])
        np.testing.assert_array_equal(walks[:, 0], IMAGES)
        np.testing.assert_array_equal(walks[:, -1], OTHERS)
        latents = client.interpolate_latents(IMAGES, OTHERS, 3)
        np.testing.assert_allclose(latents[:, 1], (latents_of(IMAGES) + latents_of(OTHERS)) / 2, rtol=1e-5)
        assert client.sample(7, seed=1).shape == (7, *IMAGES.shape[1:])
        drawn = client.sample_latents(7, seed=1)
        np.testing.assert_array_equal(drawn[:2], client.sample_latents(2, seed=1))
        assert np.any(drawn != client.sample_latents(7, seed=2))
        np.testing.assert_array_equal(client.decode(drawn), client.sample(7, seed=1))


def test_many_calls_at_once_keep_their_answers(server: ServerProcess) -> None:
    async def check(client: AsyncClient, seed: int) -> None:
        images = random_images(1 + seed % 9, seed)
        np.testing.assert_array_equal(await client.edit(images, {"Smiling": 0}), images)
        np.testing.assert_array_equal((await client.encode(images)).mu, latents_of(images))

    async def run() -> None:
        async with AsyncClient(server.target, retry_overload=9) as client:  # of a busy machine
            await asyncio.gather(*(check(client, seed) for seed in range(200)))

    asyncio.run(run())


def test_errors_are_the_same(server: ServerProcess) -> None:
    async def ask() -> ClientError:
        async with AsyncClient(server.target) as client:
            with pytest.raises(ValueError, match=r"uint8 \[N, S, S, 3\]"):
                await client.encode(LATENTS)  # type: ignore[arg-type]
            with pytest.raises(ClientError) as caught:
                await client.edit(IMAGES, {"Bald": 1})
            return caught.value

    with Client(server.target) as client, pytest.raises(ClientError) as caught:
        client.edit(IMAGES, {"Bald": 1})
    mine, theirs = caught.value, asyncio.run(ask())
    assert (mine.status, mine.message, mine.violations) == (theirs.status, theirs.message, theirs.violations)
    assert mine.status == "NOT_FOUND"
    assert [one.field for one in mine.violations] == ["edits[0]"]
    assert mine.request_id
    assert theirs.request_id not in (None, mine.request_id)
