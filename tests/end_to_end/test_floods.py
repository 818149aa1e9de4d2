"""Clients that send more frames of HTTP/2 than anybody needs: nothing stays of them, and others are answered."""

from pathlib import Path

import grpc
import pytest
from batches import raw_batch
from gates import constant
from servers import server_of
from serving import http2
from serving.requests import stub_of
from wires import OWN_CONNECTION, Wire, in_loop, until

from protos import dfcvae_pb2 as pb

ENCODE = b"/dfcvae.v1.LatentEngine/Encode"
IMAGES = pb.EncodeRequest(images=raw_batch(constant(1)))
REQUEST = IMAGES.SerializeToString()


def flood_of(name: str) -> bytes:
    """Some megabytes."""
    calls = range(1, 8_000, 2)
    return {
        "resets of calls": b"".join(http2.call(number, ENCODE, REQUEST) + http2.cancel(number) for number in calls),
        "resets of halves": b"".join(http2.opening(number, ENCODE) + http2.cancel(number) for number in calls),
        "settings": http2.frame(http2.SETTINGS, 0, 0) * 400_000,
        "pings": http2.frame(http2.PING, 0, 0, bytes(8)) * 200_000,
    }[name]


@pytest.mark.parametrize("name", ["resets of calls", "resets of halves", "settings", "pings"])
@in_loop
async def test_nothing_stays_of_a_flood_and_others_are_answered(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    with server_of(tiny_bundle, tmp_path, "--metrics-port", "0") as server:
        async with grpc.aio.insecure_channel(server.target, [OWN_CONNECTION]) as channel:
            encode = stub_of(channel).Encode
            await encode(IMAGES)
            before = server.memory()
            wire = await Wire.to(server.target, "127.0.0.2")
            wire.send(flood_of(name))  # and reads nothing
            for _ in range(20):
                assert (await encode(IMAGES, timeout=10)).mu.count == 1
            assert server.memory() - before < 40
            wire.drop()
            await until(lambda: server.metric("dfcvae_calls_in_flight") == 0)
            await until(lambda: server.metric("dfcvae_bytes_in_flight") == 0)
