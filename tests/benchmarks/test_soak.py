"""The checks under load, in short: a right server passes, and wrong ones are found out."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from bundles import reseal, write_tiny_bundle
from servers import ServerProcess
from serving.answers import Answers
from serving.clients import Crowd, Tally
from serving.menu import Menu

from engine.bundle import Bundle
from engine.latents import Directions

ROOT = Path(__file__).parents[2]

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


def soak(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)


def send(server: ServerProcess, bundle: Path, requests: int) -> Tally:
    """What eight clients get that expect answers of `bundle`."""
    crowd = Crowd(server.target, Menu(Answers(Bundle.load(bundle), 50, threads=1), 50), 8)
    return asyncio.run(crowd.run(lambda: sum(crowd.tally.sent.values()) >= requests))


def test_every_rpc_is_answered_right(tiny_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "soak.json"
    result = soak("--bundle", tiny_bundle, "--quick", "--json", record)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(record.read_text())
    assert set(figures["sent"]) == {"Encode", "Decode", "Edit", "EditStream", "Interpolate", "Sample"}
    assert figures["sent"] == figures["answered"]
    assert figures["refused"] == {}
    assert figures["wrong"] == []
    assert figures["deviation"]["images"] > 0
    assert figures["checks"]
    assert all(figures["checks"].values())


def test_wrong_edits_are_noticed(tiny_bundle: Path, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other")
    path = other / "directions.safetensors"
    known = Directions.load(path)
    Directions(known.names, known.vectors * 3, known.positives, known.negatives, known.split, known.kinds).save(path)
    reseal(other)
    with ServerProcess(["-m", "engine", "--bundle", str(other)], tmp_path) as server:
        tally = send(server, tiny_bundle, 200)
    assert {text.partition(":")[0] for text in tally.wrong} == {"Edit", "EditStream"}
    assert tally.answered["Encode"] == tally.sent["Encode"] > 0
    assert tally.answered["Sample"] == tally.sent["Sample"] > 0
    assert tally.lost == 0


def test_mixed_up_answers_are_noticed(tiny_bundle: Path, tmp_path: Path) -> None:
    script = tmp_path / "mixing.py"
    script.write_text(MIXING_SERVER)
    with ServerProcess([str(script), "--bundle", str(tiny_bundle)], tmp_path) as server:
        tally = send(server, tiny_bundle, 100)
    assert {"Decode", "Edit"} <= {text.partition(":")[0] for text in tally.wrong}
    assert tally.answered["Encode"] == tally.sent["Encode"] > 0


def test_answers_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    graph = onnx.load(bundle / "decoder.onnx")
    for tensor in graph.graph.initializer:
        if tensor.name == "high":
            black = onnx.numpy_helper.to_array(tensor) * 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(black, "high"))
    onnx.save(graph, bundle / "decoder.onnx")
    reseal(bundle)
    result = soak("--bundle", bundle, "--quick")
    assert result.returncode == 2
    assert "answers of this bundle can't be told apart; use a trained model" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clients", "0"), "--clients 0: must be at least 1"),
        (("--max-images", "1000"), "--max-images 1000: must be from 1 to 400"),
        (("--minutes", "0"), "--minutes 0.0: must be above 0"),
        (("--bundle", "nowhere"), "no bundle folder at nowhere"),
    ],
)
def test_bad_input(tiny_bundle: Path, arguments: tuple[str, str], message: str) -> None:
    result = soak("--bundle", tiny_bundle, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
