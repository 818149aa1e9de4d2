"""Streams of edits, from both clients, against a real server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from servers import ServerProcess, server_of
from tiny_model import images_of, latents_of, random_images, tiny_directions

from engine.client import AsyncClient, Client, ClientError, Edited, StreamEdit

IMAGES = random_images(2, seed=1)
SMILE = tiny_directions()["Smiling"]


def smiling(strength: float) -> object:
    return images_of(latents_of(IMAGES) + np.float32(strength) * SMILE)


def steps(count: int) -> Iterator[StreamEdit]:
    """Steps whose right answer is `smiling(number)`, but for every fifth, which is wrong."""
    for number in range(count):
        name = "Bald" if number % 5 == 4 else "Smiling"
        yield StreamEdit(IMAGES if number % 3 == 0 else None, {name: number})


def check_answers(answers: list[Edited | ClientError], count: int) -> None:
    assert len(answers) == count
    for number, answer in enumerate(answers):
        if number % 5 == 4:
            assert isinstance(answer, ClientError)
            assert (answer.status, "'Bald'" in answer.message) == ("NOT_FOUND", True)
        else:
            assert isinstance(answer, Edited)
            np.testing.assert_array_equal(answer.images, smiling(number))
            assert (answer.files, answer.latents) == (None, None)


def test_a_stream_answers_in_order_and_goes_past_what_is_wrong(server: ServerProcess) -> None:
    with Client(server.target) as client:
        check_answers(list(client.edit_stream(steps(50))), 50)


@pytest.mark.parametrize("kind", ["iterable", "asynchronous iterable"])
def test_an_asynchronous_stream_does_the_same(server: ServerProcess, kind: str) -> None:
    async def slowly() -> AsyncIterator[StreamEdit]:
        for step in steps(50):
            await asyncio.sleep(0)
            yield step

    async def run() -> list[Edited | ClientError]:
        async with AsyncClient(server.target) as client:
            source = steps(50) if kind == "iterable" else slowly()
            return [answer async for answer in client.edit_stream(source)]

    check_answers(asyncio.run(run()), 50)


def test_every_form_of_answer(server: ServerProcess) -> None:
    latents = latents_of(IMAGES)
    wanted = [
        StreamEdit(latents),
        StreamEdit(edits=[(SMILE, 1.0)], result="latents"),
        StreamEdit(edits={"Smiling": 1}, result="both"),
        StreamEdit(edits={"Smiling": 1}, file_format="PNG"),
    ]
    with Client(server.target) as client:
        answers = list(client.edit_stream(wanted))
        files = client.edit_files(latents, {"Smiling": 1})
    assert all(isinstance(answer, Edited) for answer in answers)
    plain, moved, both, filed = (answer for answer in answers if isinstance(answer, Edited))
    np.testing.assert_array_equal(plain.images, IMAGES)
    assert moved.images is None
    np.testing.assert_array_equal(moved.latents, latents + SMILE)
    np.testing.assert_array_equal(both.images, smiling(1))
    np.testing.assert_array_equal(both.latents, latents + SMILE)
    assert (filed.files, filed.images) == (files, None)


def test_an_endless_stream_may_be_left(server: ServerProcess) -> None:
    endless = (StreamEdit(IMAGES, {"Smiling": 0}) for _ in itertools.count())

    async def run() -> None:
        async with AsyncClient(server.target) as client:
            answers = client.edit_stream(StreamEdit(IMAGES) for _ in itertools.count())
            assert isinstance(await anext(answers), Edited)
            await answers.aclose()

    with Client(server.target) as client:
        answers = client.edit_stream(endless)
        for answer in itertools.islice(answers, 20):
            assert isinstance(answer, Edited)
        answers.close()
        assert client.health() == "SERVING"
    asyncio.run(run())


def failing() -> Iterator[StreamEdit]:
    yield StreamEdit(IMAGES, {"Smiling": 0})
    yield StreamEdit(None, {"Smiling": 1})
    raise LookupError("no more frames")


def test_what_goes_wrong_in_the_steps_comes_out_after_the_answers(server: ServerProcess) -> None:
    answers: list[Edited | ClientError] = []

    def collect(client: Client) -> None:
        answers.extend(iter(client.edit_stream(failing())))

    async def collect_async() -> None:
        async with AsyncClient(server.target) as client:
            async for answer in client.edit_stream(failing()):
                answers.append(answer)

    with Client(server.target) as client:
        with pytest.raises(LookupError, match="no more frames"):
            collect(client)
        with pytest.raises(TypeError, match=r"not the str 'face\.png'; read the file first"):
            list(client.edit_stream([StreamEdit("face.png")]))  # type: ignore[arg-type]
    check_answers(answers, 2)
    answers.clear()
    with pytest.raises(LookupError, match="no more frames"):
        asyncio.run(collect_async())
    check_answers(answers, 2)


def test_a_slider(server: ServerProcess) -> None:
    with Client(server.target) as client, client.stream(priority="interactive") as slider:
        np.testing.assert_array_equal(slider.edit(IMAGES, {"Smiling": 1}), smiling(1))
        for strength in range(-5, 5):
            np.testing.assert_array_equal(slider.edit(None, {"Smiling": strength}), smiling(strength))
        with pytest.raises(ClientError, match="NOT_FOUND: unknown attribute 'Bald'"):
            slider.edit(None, {"Bald": 1})
        with pytest.raises(TypeError, match="source must be"):
            slider.edit("face.png", {"Smiling": 1})  # type: ignore[arg-type]
        assert slider.send(StreamEdit(edits={"Smiling": 2}, file_format="PNG")).files == client.edit_files(
            IMAGES, {"Smiling": 2}
        )
        np.testing.assert_array_equal(slider.edit(None, []), IMAGES)


def test_an_asynchronous_slider(server: ServerProcess) -> None:
    async def run() -> None:
        async with AsyncClient(server.target) as client, client.stream() as slider:
            np.testing.assert_array_equal(await slider.edit(IMAGES, {"Smiling": 1}), smiling(1))
            answers = await asyncio.gather(*(slider.edit(None, {"Smiling": number}) for number in range(20)))
            for number, answer in enumerate(answers):
                np.testing.assert_array_equal(answer, smiling(number))
            with pytest.raises(ClientError, match="NOT_FOUND: unknown attribute 'Bald'"):
                await slider.edit(None, {"Bald": 1})
            filed = await slider.send(StreamEdit(edits={"Smiling": 2}, file_format="PNG"))
            assert filed.files == await client.edit_files(IMAGES, {"Smiling": 2})
            await slider.close()
            with pytest.raises(ClientError, match="the stream has ended; open another one"):
                await slider.edit(None, {"Smiling": 2})

    asyncio.run(run())


def test_a_cancelled_edit_ends_an_asynchronous_slider(server: ServerProcess) -> None:
    async def run() -> None:
        async with AsyncClient(server.target) as client, client.stream() as slider:
            await slider.edit(IMAGES, {"Smiling": 1})
            abandoned = asyncio.create_task(slider.edit(None, {"Smiling": 2}))
            await asyncio.sleep(0)
            abandoned.cancel()
            with pytest.raises(asyncio.CancelledError):
                await abandoned
            with pytest.raises(ClientError, match="the stream has ended; open another one"):
                await slider.edit(None, {"Smiling": 3})

    asyncio.run(run())


def test_threads_take_turns_at_a_slider(server: ServerProcess) -> None:
    with Client(server.target) as client, client.stream() as slider, ThreadPoolExecutor(8) as pool:
        slider.edit(IMAGES, {"Smiling": 0})
        numbers = range(100)
        answers = list(pool.map(lambda number: slider.edit(None, {"Smiling": number}), numbers))
    for number, answer in zip(numbers, answers, strict=True):
        np.testing.assert_array_equal(answer, smiling(number))


def test_a_slider_without_a_source_is_told_so_and_goes_on(server: ServerProcess) -> None:
    with Client(server.target) as client, client.stream() as slider:
        with pytest.raises(ClientError, match="INVALID_ARGUMENT: the stream has no source yet"):
            slider.edit(None, {"Smiling": 1})
        np.testing.assert_array_equal(slider.edit(IMAGES, {"Smiling": 1}), smiling(1))


def test_streams_of_a_server_that_dies_end(tiny_bundle: Path, tmp_path: Path) -> None:
    async def run(target: str) -> None:
        async with AsyncClient(target) as client, client.stream() as slider:
            await slider.edit(IMAGES, {"Smiling": 1})
            server.kill()
            for _ in range(2):
                with pytest.raises(ClientError, match="UNAVAILABLE"):
                    await slider.edit(None, {"Smiling": 2})

    with server_of(tiny_bundle, tmp_path) as server, Client(server.target) as client, client.stream() as slider:
        slider.edit(IMAGES, {"Smiling": 1})
        asyncio.run(run(server.target))
        for _ in range(2):
            with pytest.raises(ClientError, match="UNAVAILABLE"):
                slider.edit(None, {"Smiling": 2})
        with pytest.raises(ClientError, match="UNAVAILABLE"):
            list(client.edit_stream(steps(3)))
    with pytest.raises(ClientError, match=r"CANCELLED|UNAVAILABLE"):
        slider.edit(None, {"Smiling": 2})
