"""EditStream of a real server: order, memory of the last source, errors that concern one request, flow control."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from batches import floats_of, latent_batch, pixels_of, raw_batch
from bundles import smile_more, write_tiny_bundle
from gates import connected, constant, gated_server, until
from servers import server_of
from tiny_model import images_of, latents_of, random_images, tiny_directions

from protos import dfcvae_pb2 as pb

SMILE = tiny_directions()["Smiling"]


def step(images: npt.NDArray[np.uint8] | None = None, smile: float | None = None, **fields: Any) -> Any:
    request = pb.EditStreamRequest(**fields)
    if images is not None:
        request.images.CopyFrom(raw_batch(images))
    if smile is not None:
        request.edits.add(attribute="Smiling", strength=smile)
    return request


def pixels(answer: pb.EditStreamResponse) -> npt.NDArray[np.uint8]:
    assert answer.WhichOneof("outcome") == "edited", answer.error
    return pixels_of(answer.edited.images)


def run(stub: Any, requests: Iterable[pb.EditStreamRequest]) -> list[pb.EditStreamResponse]:
    return list(stub.EditStream(iter(requests), timeout=60))


def test_a_video_comes_back_in_order(stub: Any) -> None:
    frames = [random_images(1 + index % 5, seed=index) for index in range(200)]
    answers = run(stub, (step(frame, 1.0, id=index) for index, frame in enumerate(frames)))
    assert [answer.id for answer in answers] == list(range(200))
    for frame, answer in zip(frames, answers, strict=True):
        np.testing.assert_array_equal(pixels(answer), images_of(latents_of(frame) + SMILE))


def test_a_slider_edits_the_last_source_again(stub: Any) -> None:
    first, second = random_images(2, seed=1), random_images(3, seed=2)
    answers = run(stub, [step(first, 0.5), step(smile=1.0), step(smile=-1.0), step(second), step(smile=2.0)])
    expected = [(first, 0.5), (first, 1.0), (first, -1.0), (second, 0.0), (second, 2.0)]
    for (images, strength), answer in zip(expected, answers, strict=True):
        np.testing.assert_array_equal(pixels(answer), images_of(latents_of(images) + np.float32(strength) * SMILE))


def test_a_slider_move_costs_only_a_decode(tiny_bundle: Path, tmp_path: Path) -> None:
    with gated_server(tiny_bundle, tmp_path) as gate, connected(gate.server.target) as stub:
        gate.close()
        gate.open()
        run(stub, [step(constant(7), 1.0), step(smile=2.0), step(smile=3.0)])
        graphs = [batch.split()[0] for batch in gate.batches()]
    assert graphs.count("encode") == 1
    assert 2 <= graphs.count("decode") <= 3, "the two moves may share a batch"


def test_latents_are_a_source_too_and_come_back_when_asked_for(stub: Any) -> None:
    latents = latents_of(random_images(2, seed=3))
    request = pb.EditStreamRequest(latents=latent_batch(latents), result=pb.EDIT_RESULT_LATENTS)
    both = pb.EDIT_RESULT_IMAGES_AND_LATENTS
    first, second = run(stub, [request, step(smile=1.0, result=both)])
    assert not first.edited.HasField("images")
    np.testing.assert_array_equal(floats_of(first.edited.latents), latents)
    moved = latents + SMILE
    np.testing.assert_array_equal(floats_of(second.edited.latents), moved)
    np.testing.assert_array_equal(pixels(second), images_of(moved))


def test_what_is_wrong_with_a_request_stays_with_it(stub: Any) -> None:
    images = random_images(1, seed=4)
    requests = [
        step(smile=1.0, id=1),
        step(images, 1.0, id=2),
        pb.EditStreamRequest(edits=[pb.Edit(attribute="Bald", strength=1)], id=3),
        pb.EditStreamRequest(edits=[pb.Edit(attribute="Smiling", strength=float("nan"))], id=4),
        step(smile=2.0, id=5),
        pb.EditStreamRequest(images=pb.ImageBatch(raw=pb.RawImages(count=1, height=9, width=8)), id=6),
        step(smile=2.0, id=7),
        step(images, id=8, model="nobody"),
        step(images, id=9),
    ]
    answers = run(stub, requests)
    assert [answer.id for answer in answers] == list(range(1, 10))
    errors = {answer.id: (answer.error.code, answer.error.message) for answer in answers if answer.HasField("error")}
    assert {number: code for number, (code, _) in errors.items()} == {1: 3, 3: 5, 4: 3, 6: 3, 7: 3, 8: 5}
    for number, words in {
        1: "no source yet",
        3: "'Bald'",
        4: "nan",
        6: "not 9x8",
        7: "the stream's last source was refused: raw images must",
        8: "'nobody'",
    }.items():
        assert words in errors[number][1]
    for answer, strength in ((answers[1], 1), (answers[4], 2), (answers[8], 0)):
        np.testing.assert_array_equal(pixels(answer), images_of(latents_of(images) + np.float32(strength) * SMILE))


def test_a_source_whose_edits_were_wrong_can_still_be_edited(stub: Any) -> None:
    images = random_images(1, seed=5)
    bad = step(images)
    bad.edits.add(attribute="Bald", strength=1)
    failed, good = run(stub, [bad, step(smile=1.0)])
    assert failed.error.code == 5
    np.testing.assert_array_equal(pixels(good), images_of(latents_of(images) + SMILE))


def test_a_client_that_does_not_read_is_not_read(tiny_bundle: Path, tmp_path: Path) -> None:
    """Answers of some megabytes that nobody takes: the server must not compute them all ahead."""
    sent = 0
    images = random_images(1000, seed=6)

    def requests() -> Iterator[pb.EditStreamRequest]:
        nonlocal sent
        for index in range(400):
            sent = index + 1
            yield step(images, 0.0, id=index)

    with (
        server_of(tiny_bundle, tmp_path) as server,
        connected(server.target) as stub,
    ):
        call = stub.EditStream(requests(), timeout=120)
        first = next(call)
        settled, before = threading.Event(), -1
        while before != sent:
            before = sent
            settled.wait(1.0)
        assert sent < 200, "the sender is held up long before its end"
        np.testing.assert_array_equal(pixels(first), images)
        assert [answer.id for answer in call] == list(range(1, 400))


def test_a_cancelled_stream_leaves_the_server_well(tiny_bundle: Path, tmp_path: Path) -> None:
    with gated_server(tiny_bundle, tmp_path) as gate, connected(gate.server.target) as stub:
        gate.close()
        call = stub.EditStream(iter([step(constant(value), 0.0) for value in (21, 22, 23, 24)]))
        until(lambda: len(gate.batches()) == 1)
        call.cancel()
        gate.open()
        np.testing.assert_array_equal(pixels(run(stub, [step(constant(5), 0.0)])[0]), constant(5))
        assert "Traceback" not in gate.server.log


def test_a_stream_outlives_a_reload_of_its_model(tmp_path: Path) -> None:
    """The latents of the old model mean nothing to the new one: the source is encoded again."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    images = random_images(1, seed=8) // 2
    turn = threading.Event()

    def requests() -> Iterator[pb.EditStreamRequest]:
        yield step(images, 1.0)
        turn.wait(60)
        yield step(smile=1.0)

    with server_of(bundle, tmp_path, "--reload-every-s", "0.05") as server, connected(server.target) as stub:
        old = stub.GetModel(pb.GetModelRequest()).fingerprint
        call = stub.EditStream(requests(), timeout=60)
        np.testing.assert_array_equal(pixels(next(call)), images_of(latents_of(images) + SMILE))
        smile_more(bundle, 3)
        until(lambda: stub.GetModel(pb.GetModelRequest()).fingerprint != old)
        turn.set()
        np.testing.assert_array_equal(pixels(next(call)), images_of(latents_of(images) + 3 * SMILE))
