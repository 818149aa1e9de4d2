"""What a real server's log has of metadata that isn't text: nothing of the values, and few lines."""

import asyncio
import time
from pathlib import Path

import pytest
from servers import ServerProcess
from wires import Wire, in_loop

TOKEN = b"Bearer s3cret-token"


def call(number: int, *metadata: tuple[bytes, bytes]) -> bytes:
    """A GetModel without metadata of gRPC's own making, so that its values may be any bytes."""
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/dfcvae.v1.LatentEngine/GetModel"),
               (b":authority", b"localhost"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
               *metadata]  # fmt: skip
    block = b"".join(b"\0" + bytes([len(key)]) + key + bytes([len(value)]) + value for key, value in headers)
    opening = Wire.frame(Wire.HEADERS, Wire.END_HEADERS, number, block)
    return opening + Wire.frame(Wire.DATA, Wire.END_STREAM, number, Wire.message(b""))


@pytest.mark.parametrize("form", ["text", "json"])
@in_loop
async def test_values_that_are_not_text_stay_out_of_the_log(form: str, tiny_bundle: Path, tmp_path: Path) -> None:
    with ServerProcess(["-m", "engine", "--bundle", str(tiny_bundle), "--log-format", form], tmp_path) as server:
        started = time.monotonic()
        wire = await Wire.to(server.target)
        for number in range(1, 40, 2):
            wire.send(call(number, (b"authorization", TOKEN + b"\xff"), *[(b"x", b"\xff")] * 50))
            await wire.until_answered(number)
        await asyncio.to_thread(server.wait_for_log, "Invalid encoding")
        wire.drop()
        lines = server.log.count("Invalid encoding")
        seconds = time.monotonic() - started
    assert "Invalid encoding on 20 bytes" in server.log
    assert "s3cret" not in server.log
    assert lines <= 5 * (seconds + 2)
