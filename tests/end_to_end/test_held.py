"""What a server holds for clients that don't take their answers is counted, and bounded."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from batches import file_batch, raw_batch
from bundles import write_tiny_bundle
from gates import connected, constant, gated_server, list_of
from gates import until as wait_until
from servers import ServerProcess, server_of
from serving import http2
from tiny_model import LATENT_DIM
from wires import NO_WINDOW, Wire, in_loop, until

from protos import dfcvae_pb2 as pb

SAMPLE = b"/dfcvae.v1.LatentEngine/Sample"
STREAM = b"/dfcvae.v1.LatentEngine/EditStream"
COUNT = 1000
ANSWER_BYTES = COUNT * 8 * 8 * 3


async def until_given_up(wire: Wire, server: ServerProcess) -> None:
    """Waits until the server has cancelled the only call, and holds nothing of it any more."""
    while (await wire.receive())[0] != http2.RST_STREAM:
        pass
    await until(lambda: server.metric("dfcvae_bytes_in_flight") == 0)
    assert server.metric("dfcvae_calls_in_flight") == 0


@in_loop
async def test_an_answer_that_is_still_travelling_counts_and_is_not_cut_off(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path, "--metrics-port", "0") as server:
        wire = await Wire.to(server.target)
        wire.send(http2.call(1, SAMPLE, pb.SampleRequest(count=COUNT).SerializeToString()))
        await wire.until_pong()
        # The answer is larger than the 65,535 bytes that this client takes at first.
        await until(lambda: server.metric("dfcvae_requests_total", method="Sample", code="OK") == 1)
        assert server.metric("dfcvae_calls_in_flight") == 1
        assert server.metric("dfcvae_bytes_in_flight") >= ANSWER_BYTES
        server.terminate()
        await until(lambda: "stopping: clients are sent away; calls being answered: 1" in server.log)
        wire.send(http2.window(0, 2 * ANSWER_BYTES) + http2.window(1, 2 * ANSWER_BYTES))
        frames = await wire.until_answered(1)
        data = b"".join(payload for kind, _, _, payload in frames if kind == http2.DATA)
        assert pb.SampleResponse.FromString(data[5:]).images.raw.count == COUNT
        assert server.wait() == 0
        wire.drop()


@in_loop
async def test_what_nobody_takes_is_forgotten_when_the_client_goes(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--metrics-port", "0", "--max-queue", str(20 * COUNT)]
    with server_of(tiny_bundle, tmp_path, *options) as server:
        wire = await Wire.to(server.target)
        for number in range(1, 21, 2):
            wire.send(http2.call(number, SAMPLE, pb.SampleRequest(count=COUNT).SerializeToString()))
        await wire.until_pong()
        await until(lambda: server.metric("dfcvae_bytes_in_flight") >= 10 * ANSWER_BYTES - 65_535)
        wire.drop()
        await until(lambda: server.metric("dfcvae_calls_in_flight") == 0)
        await until(lambda: server.metric("dfcvae_bytes_in_flight") == 0)


@in_loop
async def test_an_answer_that_nobody_takes_has_a_time_limit(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--max-message-s", "0.5", "--metrics-port", "0")
    with server_of(tiny_bundle, tmp_path, *options) as server:
        wire = await Wire.to(server.target)
        wire.send(http2.call(1, SAMPLE, pb.SampleRequest(count=COUNT).SerializeToString()))
        await until_given_up(wire, server)
        assert "Sample for 127.0.0.1: the answer was not taken within 0.5 s" in server.log
        wire.drop()


@pytest.mark.parametrize("edits", [0, 20])  # the answers fit what is held for a client, or the handler waits
@in_loop
async def test_a_stream_whose_answers_nobody_takes_has_a_time_limit(
    tiny_bundle: Path, tmp_path: Path, edits: int
) -> None:
    source = pb.EditStreamRequest(images=raw_batch(constant(1, 60)))
    moved = pb.EditStreamRequest(edits=[pb.Edit(attribute="Smiling", strength=1)])
    with server_of(tiny_bundle, tmp_path, "--max-stream-idle-s", "0.5", "--metrics-port", "0") as server:
        wire = await Wire.to(server.target)
        wire.send(NO_WINDOW)
        wire.send(http2.opening(1, STREAM))
        for request in (source, *[moved] * edits):
            wire.send(http2.frame(http2.DATA, 0, 1, http2.message(request.SerializeToString())))
        await until_given_up(wire, server)
        assert "EditStream: no answer was taken within 0.5 s" in server.log
        wire.drop()


def test_the_source_of_a_stream_counts_as_long_as_it_is_remembered(tiny_bundle: Path, tmp_path: Path) -> None:
    turn = threading.Semaphore(0)

    def requests() -> Iterator[pb.EditStreamRequest]:
        for value, count in ((1, 70), (2, 1)):
            yield pb.EditStreamRequest(images=raw_batch(constant(value, count)))
            turn.acquire()

    with server_of(tiny_bundle, tmp_path, "--metrics-port", "0") as server, connected(server.target) as stub:
        stream = stub.EditStream(requests())
        for count in (70, 1):
            assert next(stream).edited.images.raw.count == count
            least = count * 8 * 8 * 3
            most = least + count * LATENT_DIM * 4
            wait_until(lambda a=least, b=most: a <= server.metric("dfcvae_bytes_in_flight") <= b)  # type: ignore[misc]
            turn.release()
        assert list_of(stream) == ([], grpc.StatusCode.OK)
        wait_until(lambda: server.metric("dfcvae_bytes_in_flight") == 0)


def test_a_stream_is_read_ahead_by_no_more_images_than_a_request_may_have(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--max-images-per-request", "10", "--metrics-port", "0"]
    with gated_server(tiny_bundle, tmp_path, *options) as gate, connected(gate.server.target) as stub:
        gate.close()
        images = raw_batch(constant(1, 4))
        stream = stub.EditStream(pb.EditStreamRequest(images=images, id=number) for number in range(9))

        def received() -> float:
            return gate.server.metric("dfcvae_received_messages_total", method="EditStream")

        wait_until(lambda: received() >= 3)
        for _ in range(20):  # time for what should not come
            stub.GetModel(pb.GetModelRequest())
        assert received() == 3, "12 images"
        gate.open()
        assert list_of(stream) == (list(range(9)), grpc.StatusCode.OK)


def test_failures_within_a_stream_are_seen(tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path, "--metrics-port", "0") as server, connected(server.target) as stub:
        images = raw_batch(constant(1))
        steps = [
            pb.EditStreamRequest(images=images),
            pb.EditStreamRequest(edits=[pb.Edit(attribute="Halo", strength=1)]),
            pb.EditStreamRequest(images=file_batch([b"xx"])),
        ]
        answers = list(stub.EditStream(iter(steps)))
        assert [answer.WhichOneof("outcome") for answer in answers] == ["edited", "error", "error"]
        np.testing.assert_equal(
            [
                server.metric("dfcvae_stream_answers_total", method="EditStream", code=code)
                for code in ("OK", "NOT_FOUND", "INVALID_ARGUMENT")
            ],
            [1, 1, 1],
        )
        wait_until(lambda: "EditStream answered NOT_FOUND" in server.log)


def test_streams_are_measured_by_the_model_that_they_name(tmp_path: Path) -> None:
    small, large = (write_tiny_bundle(tmp_path / f"bundle{size}", image_size=size) for size in (8, 16))
    pixels = 16 * 16 * 3
    with (
        gated_server(Path(f"small={small}"), tmp_path, "--bundle", f"large={large}", "--metrics-port", "0") as gate,
        connected(gate.server.target) as stub,
    ):
        gate.close()
        raw = pb.RawImages(count=1, height=16, width=16, data=bytes(pixels))
        request = pb.EditStreamRequest(images=pb.ImageBatch(raw=raw), model="large")
        stream = stub.EditStream(iter([request]))
        wait_until(lambda: gate.batches() == ["encode 0"])
        wait_until(lambda: gate.server.metric("dfcvae_bytes_in_flight") == request.ByteSize() + pixels)
        gate.open()
        assert next(stream).edited.images.raw.height == 16
