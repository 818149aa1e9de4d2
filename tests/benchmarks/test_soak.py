"""The checks under load, in short: a right server passes, and wrong ones are found out."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from bundles import reseal, write_tiny_bundle
from scripts import Result, benchmark, require_refused
from servers import ServerProcess, server_of
from serving.clients import Load, Stats
from serving.workload import Workload
from tiny_model import save_directions

from engine.bundle import Bundle
from engine.latents import Directions

MIXING_SERVER = """
import asyncio, sys
from engine.backends import Backend, open_backend
from engine.config import load_config
from engine.server import serve

class Mixing(Backend):
    def __init__(self, inner):
        self._encode, self._decode = inner.encode, inner.decode

    def encode(self, images):
        return self._encode(images)

    def decode(self, latents):
        return self._decode(latents)[::-1].copy()

asyncio.run(serve(load_config(sys.argv[1:]), lambda bundle: Mixing(open_backend(bundle))))
"""


RPCS = {"Encode", "Decode", "Edit", "EditStream", "Interpolate", "Sample"}


def send(server: ServerProcess, bundle: Path, requests: int) -> Stats:
    """What eight clients get that expect answers of `bundle`, once they have asked so often, and by every RPC."""
    load = Load(server.target, Workload(Bundle.load(bundle), 50, 50, threads=1), 8)
    return asyncio.run(load.run(lambda: load.stats.sent.total() >= requests and set(load.stats.sent) == RPCS))


def test_every_rpc_is_answered_right(server: ServerProcess, tiny_bundle: Path) -> None:
    stats = send(server, tiny_bundle, 1)
    assert stats.sent == stats.answered
    assert not stats.wrong


def test_images_of_requests_under_way_at_once_are_all_counted() -> None:
    async def answer(images: int) -> int:
        await asyncio.sleep(0)
        return images

    async def scene() -> Stats:
        stats = Stats()
        await asyncio.gather(*(stats.count("Edit", answer(images)) for images in (2, 3)))
        return stats

    assert asyncio.run(scene()).images == 5


def test_a_soak_tells_what_it_sent_and_got(tiny_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "soak.json"
    result = benchmark("soak", "--bundle", tiny_bundle, "--clients", 8, "--minutes", 0.02, "--json", record)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(record.read_text())
    assert set(figures["sent"]) <= RPCS
    assert figures["sent"] == figures["answered"]
    assert figures["refused"] == {}
    assert figures["wrong"] == []
    assert figures["images"] > 0
    assert figures["checks"]
    assert all(figures["checks"].values())


def test_wrong_edits_are_noticed(tiny_bundle: Path, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other")
    path = other / "directions.safetensors"
    known = Directions.load(path)
    save_directions(replace(known, vectors=known.vectors * 3), path)
    reseal(other)
    with server_of(other, tmp_path) as server:
        stats = send(server, tiny_bundle, 200)
    assert {text.partition(":")[0] for text in stats.wrong} == {"Edit", "EditStream"}
    assert stats.answered["Encode"] == stats.sent["Encode"] > 0
    assert stats.answered["Sample"] == stats.sent["Sample"] > 0
    assert stats.lost == 0


def test_mixed_up_answers_are_noticed(tiny_bundle: Path, tmp_path: Path) -> None:
    script = tmp_path / "mixing.py"
    script.write_text(MIXING_SERVER)
    with ServerProcess([str(script), "--bundle", str(tiny_bundle)], tmp_path) as server:
        stats = send(server, tiny_bundle, 100)
    assert {"Decode", "Edit"} <= {text.partition(":")[0] for text in stats.wrong}
    assert stats.answered["Encode"] == stats.sent["Encode"] > 0


def test_answers_that_cannot_be_told_apart_are_refused(script: Callable[..., Result], tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    graph = onnx.load(bundle / "decoder.onnx")
    for tensor in graph.graph.initializer:
        if tensor.name == "high":
            black = onnx.numpy_helper.to_array(tensor) * 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(black, "high"))
    onnx.save(graph, bundle / "decoder.onnx")
    reseal(bundle)
    result = script("soak", "--bundle", bundle, "--minutes", 0.02)
    assert result.returncode == 2
    assert "answers of this bundle can't be told apart; use a trained model" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clients", "0"), "--clients 0: must be above 0"),
        (("--minutes", "0"), "--minutes 0.0: must be above 0"),
        (("--bundle", "nowhere"), "no bundle folder at nowhere"),
    ],
)
def test_bad_input(script: Callable[..., Result], tiny_bundle: Path, arguments: tuple[str, str], message: str) -> None:
    require_refused(script("soak", "--bundle", tiny_bundle, *arguments), message)
