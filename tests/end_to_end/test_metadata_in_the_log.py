"""What a real server's log has of metadata that isn't text: nothing of the values, and few lines."""

import asyncio
import re
from collections import Counter
from pathlib import Path

import pytest
from servers import server_of
from serving import http2
from wires import Wire, in_loop

GET_MODEL = "/dfcvae.v1.LatentEngine/GetModel"
TOKEN = b"Bearer s3cret-token"


@pytest.mark.parametrize("form", ["text", "json"])
@in_loop
async def test_values_that_are_not_text_stay_out_of_the_log(form: str, tiny_bundle: Path, tmp_path: Path) -> None:
    with server_of(tiny_bundle, tmp_path, "--log-format", form) as server:
        wire = await Wire.to(server.target)
        for number in range(1, 40, 2):
            wire.send(http2.call(number, GET_MODEL, b"", (b"authorization", TOKEN + b"\xff"), *[(b"x", b"\xff")] * 50))
            await wire.until_answered(number)
        await asyncio.to_thread(server.wait_for_log, "Invalid encoding")
        wire.drop()
        lines = [line for line in server.log.splitlines() if "Invalid encoding" in line]
    assert "Invalid encoding on 20 bytes" in server.log
    assert "s3cret" not in server.log
    # Each call has 51 such values; of them there are five lines a second, which may be of two seconds by the clock.
    clock = re.compile(r"\d\d:\d\d:\d\d")
    assert max(Counter(found.group() for found in map(clock.search, lines) if found).values()) <= 10
