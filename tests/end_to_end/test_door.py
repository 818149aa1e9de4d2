"""What clients can take up of a real server: by uploads, streams and watches."""

import asyncio
import queue
import signal
import struct
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from batches import file_batch, raw_batch
from fuzzing.files import file_of
from gates import connected, constant, gated_server
from gates import until as wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from servers import ServerProcess, server_of
from serving import http2
from serving.http2 import WINDOW_BYTES
from serving.requests import stub_of
from wires import NO_WINDOW, OWN_CONNECTION, Wire, in_loop, refusal_of, until

from engine.access.admission import window_of
from protos import dfcvae_pb2 as pb

ENCODE = b"/dfcvae.v1.LatentEngine/Encode"
STREAM = b"/dfcvae.v1.LatentEngine/EditStream"
GET_MODEL = b"/dfcvae.v1.LatentEngine/GetModel"
CHECK = b"/grpc.health.v1.Health/Check"
MESSAGE_BYTES = 4 * 2**20
TOKENS = {"anna": "0123456789abcdef-anna", "bert": "0123456789abcdef-bert"}


def serve(bundle: Path, folder: Path, *options: str, tokens: bool = False) -> ServerProcess:
    if tokens:
        file = folder / "tokens"
        file.write_text("".join(f"{name} {token}\n" for name, token in TOKENS.items()))
        options = (*options, "--tokens", str(file))
    return server_of(bundle, folder, *options)


def metadata_of(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {TOKENS[name]}"),)


class Uploads:
    """Calls on one connection, each with a message that lacks its last byte.

    Args:
        wire: The connection.
        path: Of the method.
        count: Calls.
        headers: Beside the usual ones.
        before: Goes before the message, with the headers.
    """

    def __init__(
        self, wire: Wire, path: bytes, count: int, headers: tuple[tuple[bytes, bytes], ...] = (), before: bytes = b""
    ) -> None:
        self._wire = wire
        self._opening = path, headers, before
        self._data = memoryview(before + struct.pack(">BL", 0, MESSAGE_BYTES) + bytes(MESSAGE_BYTES - 1))
        self._room = WINDOW_BYTES
        self._rooms: dict[int, int] = {}
        self._positions: dict[int, int] = {}
        self._first_window = WINDOW_BYTES
        self.sent = 0
        self.ended: Counter[bytes] = Counter()
        self.open(count)

    def open(self, count: int) -> None:
        """Begins so many calls more."""
        path, headers, before = self._opening
        for number in range(2 * len(self._rooms) + 1, 2 * (len(self._rooms) + count), 2):
            self._wire.send(http2.opening(number, path, *headers))
            if before:
                self._wire.send(http2.frame(http2.DATA, 0, number, before))
            self._positions[number] = len(before)
            self._rooms[number] = self._first_window - len(before)
            self._room -= len(before)

    async def go_on(self, least: int = 0) -> None:
        """Sends as much as the server takes, `least` bytes and until it takes no more for a while."""
        while True:
            for number, position in self._positions.items():
                size = min(len(self._data) - position, 16_384, self._rooms[number], self._room)
                if size > 0:
                    self._wire.send(http2.frame(http2.DATA, 0, number, bytes(self._data[position : position + size])))
                    self._positions[number] += size
                    self._rooms[number] -= size
                    self._room -= size
                    self.sent += size
            try:
                await self._take(await asyncio.wait_for(self._wire.receive(), 0.5))
            except asyncio.TimeoutError:
                if self.sent >= least:
                    return

    async def _take(self, frame: tuple[int, int, int, bytes]) -> None:
        kind, flags, number, payload = frame
        if kind == http2.WINDOW_UPDATE and number:
            self._rooms[number] += int.from_bytes(payload, "big")
        elif kind == http2.WINDOW_UPDATE:
            self._room += int.from_bytes(payload, "big")
        elif kind == http2.SETTINGS and not flags:
            size = dict(struct.iter_unpack(">HL", payload)).get(http2.INITIAL_WINDOW_SIZE, WINDOW_BYTES)
            more, self._first_window = size - self._first_window, size
            self._rooms = {number: room + more for number, room in self._rooms.items()}
            self._wire.send(http2.frame(http2.SETTINGS, 1, 0))
        elif kind == http2.PING and not flags:
            self._wire.send(http2.frame(http2.PING, 1, 0, payload))
        elif kind == http2.HEADERS and flags & http2.END_STREAM:
            self._positions[number] = len(self._data)
            self.ended[payload] += 1


@in_loop
async def test_nothing_is_taken_of_calls_without_a_token(tiny_bundle: Path, tmp_path: Path) -> None:
    with serve(tiny_bundle, tmp_path, tokens=True) as server:
        before = server.memory()
        wire = await Wire.to(server.target)
        uploads = Uploads(wire, ENCODE, 40)
        while uploads.ended.total() < 40:
            await uploads.go_on()
        assert uploads.sent < 2 * MESSAGE_BYTES
        assert server.memory() - before < 30
        await until(lambda: "Encode UNAUTHENTICATED for 127.0.0.1" in server.log)
        wire.drop()


@pytest.mark.parametrize("most_bytes", [2**26, 2**31])
@in_loop
async def test_the_first_window_fits_the_bytes_in_flight(tiny_bundle: Path, tmp_path: Path, most_bytes: int) -> None:
    with serve(tiny_bundle, tmp_path, "--max-bytes-in-flight", str(most_bytes)) as server:
        wire = await Wire.to(server.target)
        while (frame := await wire.receive())[0] != http2.SETTINGS or not frame[3]:
            pass
        settings = dict(struct.iter_unpack(">HL", frame[3]))
        assert settings.get(http2.INITIAL_WINDOW_SIZE, WINDOW_BYTES) == window_of(most_bytes)
        wire.drop()


@pytest.mark.parametrize("path", [ENCODE, CHECK])
@in_loop
async def test_unfinished_uploads_count_and_others_go_on(tiny_bundle: Path, tmp_path: Path, path: bytes) -> None:
    most = 8 * MESSAGE_BYTES
    options = ("--max-message-bytes", str(MESSAGE_BYTES), "--max-bytes-in-flight", str(most), "--metrics-port", "0")
    with serve(tiny_bundle, tmp_path, *options, tokens=True) as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            images = pb.EncodeRequest(images=raw_batch(constant(1)))
            encode = stub_of(channel).Encode
            await encode(images, metadata=metadata_of("bert"))
            before = server.memory()
            wire = await Wire.to(server.target, "127.0.0.2")
            uploads = Uploads(wire, path, 40, ((b"authorization", b"Bearer " + TOKENS["anna"].encode()),))
            await uploads.go_on(3 * MESSAGE_BYTES)
            assert uploads.sent < most, "the windows of calls that wait are counted, too"
            assert server.memory() - before < 2 * most // 2**20
            assert server.metric("dfcvae_bytes_in_flight") <= most
            for _ in range(3):
                assert (await encode(images, metadata=metadata_of("bert"), timeout=10)).mu.count == 1
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            wire.drop()
            await until(lambda: server.metric("dfcvae_bytes_in_flight") == 0)


@in_loop
async def test_a_message_has_a_time_limit(tiny_bundle: Path, tmp_path: Path) -> None:
    with serve(tiny_bundle, tmp_path, "--max-message-s", "0.3", "--metrics-port", "0") as server:
        wire = await Wire.to(server.target)
        wire.send(http2.opening(1, ENCODE))
        ((_, _, _, block),) = await wire.until_answered(1)
        assert b"the message did not come within 0.3 s" in block
        await until(lambda: server.metric("dfcvae_calls_in_flight") == 0)
        ended = "Encode CANCELLED for 127.0.0.1 in 0.000 ms: the call ended before its message had come"
        await until(lambda: ended in server.log)
        wire.drop()


def test_the_log_names_the_client_of_a_message_that_is_too_large(tiny_bundle: Path, tmp_path: Path) -> None:
    with serve(tiny_bundle, tmp_path, "--max-message-bytes", "2000") as server, connected(server.target) as stub:
        with pytest.raises(grpc.RpcError):
            stub.Encode(pb.EncodeRequest(images=raw_batch(constant(1, 20))))
        server.wait_for_log("Encode CANCELLED for 127.0.0.1 in 0.000 ms: the call ended before")


@in_loop
async def test_calls_whose_answers_nobody_reads_take_no_more_than_docs_operating_says(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """Neither by their metadata nor by what their client sends on after the message."""
    most_bytes = 2**28
    with serve(tiny_bundle, tmp_path, "--metrics-port", "0", "--max-bytes-in-flight", str(most_bytes)) as server:

        async def in_flight(calls: int) -> None:
            await until(lambda: server.metric("dfcvae_calls_in_flight") == calls)

        wire = await Wire.to(server.target)
        wire.send(NO_WINDOW)
        before = server.memory()
        uploads = Uploads(wire, GET_MODEL, 0, ((b"key", 7000 * b"v"),), http2.message(b""))
        for sent in range(50, 450, 50):
            uploads.open(50)  # so few that none is refused where the machine is busy
            await in_flight(sent)
        window = window_of(most_bytes)
        await uploads.go_on(350 * window)
        assert uploads.sent <= 400 * window
        assert server.memory() - before < 400 * (50_000 + window) // 2**20
        assert server.metric("dfcvae_calls_in_flight") == 400
        wire.drop()
        await in_flight(0)


@in_loop
async def test_few_calls_wait_to_be_judged(tiny_bundle: Path, tmp_path: Path) -> None:
    with serve(tiny_bundle, tmp_path, "--max-calls-in-flight", "16", tokens=True) as server:
        wires = [await Wire.to(server.target) for _ in range(4)]
        for wire in wires:
            await wire.until_pong()
        server.process.send_signal(signal.SIGSTOP)  # or it would judge the first before the last come
        for wire in wires:
            wire.send(b"".join(http2.opening(number, ENCODE) for number in range(1, 2000, 2)))
        await asyncio.sleep(0)
        server.process.send_signal(signal.SIGCONT)
        ends: list[bytes] = []
        for number, wire in enumerate(wires, 1):
            while len(ends) < number * 1000:
                kind, _, _, payload = await wire.receive()
                if kind == http2.HEADERS:
                    ends.append(payload)
            wire.drop()
        assert 0 < sum(b"the call has no token" not in block for block in ends) < 4000
        async with grpc.aio.insecure_channel(server.target) as channel:
            images = pb.EncodeRequest(images=raw_batch(constant(1)))
            assert (await stub_of(channel).Encode(images, metadata=metadata_of("anna"), timeout=10)).mu.count == 1


def _source(size: int) -> pb.EditStreamRequest:
    """A source of files that are none."""
    return pb.EditStreamRequest(images=file_batch([bytes(size)]))


def test_idle_streams_lock_nobody_out(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--max-bytes-in-flight", str(8 * MESSAGE_BYTES), "--max-message-bytes", str(MESSAGE_BYTES))
    with (
        serve(tiny_bundle, tmp_path, *options, "--metrics-port", "0") as server,
        connected(server.target) as stub,
        ExitStack() as stack,
    ):
        streams = []
        for _ in range(10):
            requests: queue.Queue[pb.EditStreamRequest | None] = queue.Queue()
            stack.callback(requests.put, None)
            stream = stub.EditStream(iter(requests.get, None))
            streams.append(stream)
            requests.put(_source(MESSAGE_BYTES - 1000))
            assert "is not a JPEG, PNG or WebP file" in next(stream).error.message
            requests.put(pb.EditStreamRequest(edits=[pb.Edit(attribute="Smiling", strength=1)]))
            assert "the stream's last source was refused: images.files[0] is not" in next(stream).error.message
        assert server.metric("dfcvae_calls_in_flight") == 10
        wait_until(lambda: server.metric("dfcvae_bytes_in_flight") == 0)  # nothing is left of the sources
        images = pb.EncodeRequest(images=raw_batch(constant(1)))
        assert stub.Encode(images, timeout=10).mu.count == 1


def test_a_stream_that_falls_silent_keeps_no_room_for_a_message(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--max-bytes-in-flight", str(8 * MESSAGE_BYTES), "--max-message-bytes", str(MESSAGE_BYTES))
    with (
        gated_server(tiny_bundle, tmp_path, *options, "--metrics-port", "0") as gate,
        connected(gate.server.target) as stub,
        ExitStack() as stack,
    ):

        def held() -> float:
            return gate.server.metric("dfcvae_bytes_in_flight")

        gate.close()
        requests: queue.Queue[pb.EditStreamRequest | None] = queue.Queue()
        stack.callback(requests.put, None)
        stream = stub.EditStream(iter(requests.get, None))
        source = pb.EditStreamRequest(images=raw_batch(constant(1, 500)))
        assert source.ByteSize() > WINDOW_BYTES
        requests.put(source)
        wait_until(lambda: held() > MESSAGE_BYTES)  # the server asks for the next while this one is unanswered
        gate.open()
        assert next(stream).edited.images.raw.count == 500
        wait_until(lambda: held() < MESSAGE_BYTES)


@in_loop
async def test_a_client_leaves_the_last_streams_to_others(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--max-streams-in-flight", "16", "--metrics-port", "0")
    with serve(tiny_bundle, tmp_path, *options, tokens=True) as server:
        async with grpc.aio.insecure_channel(server.target, [OWN_CONNECTION]) as channel:
            stub = stub_of(channel)
            streams = [stub.EditStream(metadata=metadata_of("anna")) for _ in range(14)]
            await until(lambda: server.metric("dfcvae_calls_in_flight") == 14)
            refusal = await refusal_of(stub.EditStream(metadata=metadata_of("anna")).read())
            assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "the server has 14 streams open, at most 16" in (refusal.details() or "")
            other = stub.EditStream(metadata=metadata_of("bert"))
            await until(lambda: server.metric("dfcvae_calls_in_flight") == 15)
            for stream in (*streams, other):
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF


@in_loop
async def test_an_idle_stream_ends(tiny_bundle: Path, tmp_path: Path) -> None:
    with serve(tiny_bundle, tmp_path, "--max-stream-idle-s", "0.4") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stream = stub_of(channel).EditStream()
            for _ in range(4):  # longer than the limit, but never silent for so long
                await asyncio.sleep(0.2)
                await stream.write(pb.EditStreamRequest(images=raw_batch(constant(1))))
                assert (await stream.read()).WhichOneof("outcome") == "edited"
            refusal = await refusal_of(stream.read())
            assert refusal.code() is grpc.StatusCode.ABORTED
            assert "the stream had no request for 0.4 s; open another one" in (refusal.details() or "")


@in_loop
async def test_watches_of_health_are_bounded_and_checks_are_answered(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--max-concurrent-streams", "0", "--max-calls-in-flight", "10")
    with serve(tiny_bundle, tmp_path, *options, tokens=True) as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            request = health_pb2.HealthCheckRequest()
            answers: list[object] = []
            watches = []
            for _ in range(11):
                watches += [health_pb2_grpc.HealthStub(channel).Watch(request) for _ in range(100)]
                reads = (watch.read() for watch in watches[-100:])
                answers += await asyncio.gather(*reads, return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
            assert len(refused) == 1100 - 896
            assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            probe = await Wire.to(server.target, "127.0.0.2")
            probe.send(http2.call(1, CHECK))
            assert [frame[3][5:] for frame in await probe.until_answered(1) if frame[0] == http2.DATA] == [b"\x08\x01"]
            probe.drop()


@in_loop
async def test_a_check_that_is_sent_by_half_holds_up_no_other(tiny_bundle: Path, tmp_path: Path) -> None:
    with serve(tiny_bundle, tmp_path, "--max-message-bytes", "65536") as server:
        half, probe = await Wire.to(server.target, "127.0.0.2"), await Wire.to(server.target)
        half.send(http2.opening(1, CHECK))
        await half.until_pong()
        probe.send(http2.call(1, CHECK))
        assert [frame[3][5:] for frame in await probe.until_answered(1) if frame[0] == http2.DATA] == [b"\x08\x01"]
        for wire in (half, probe):
            wire.drop()


@in_loop
async def test_memory_stays_below_what_docs_operating_says(tiny_bundle: Path, tmp_path: Path) -> None:
    streams, pixels = 8, 4_000_000
    options = (
        *("--max-message-bytes", str(MESSAGE_BYTES), "--max-bytes-in-flight", str(8 * MESSAGE_BYTES)),
        *("--max-streams-in-flight", str(streams), "--max-pixels-in-flight", str(pixels), "--codec-threads", "8"),
    )
    picture = file_of(Image.new("RGB", (2000, 2000)), "WEBP", lossless=True)
    with serve(tiny_bundle, tmp_path, *options) as server:
        before = server.memory()
        async with grpc.aio.insecure_channel(server.target) as channel:
            files = pb.EncodedImages(files=[picture] * 4)
            calls = [stub_of(channel).Encode(pb.EncodeRequest(images=pb.ImageBatch(files=files))) for _ in range(4)]
            decoding = asyncio.gather(*calls, return_exceptions=True)
            wires = []
            for number, path in enumerate((ENCODE, CHECK, STREAM), 2):
                wires.append(await Wire.to(server.target, f"127.0.0.{number}"))
                await Uploads(wires[-1], path, 40).go_on(3 * MESSAGE_BYTES)
            for answer in await decoding:
                assert getattr(answer, "mu", None) is not None, answer
            for wire in wires:
                wire.drop()
        messages = 2 * 8 * MESSAGE_BYTES + 8 * MESSAGE_BYTES + streams * MESSAGE_BYTES
        assert server.memory("VmHWM") - before < (messages + 20 * pixels) // 2**20
