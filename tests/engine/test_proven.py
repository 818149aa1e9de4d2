"""What happens with a bundle's engines before anybody uses them; all with ONNX Runtime and real graphs."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import reseal, tiny_truth
from onnx import helper, numpy_helper

from engine.bundle import Bundle
from engine.errors import BundleError, ParityError
from engine.proof.figures import TOLERANCES
from engine.proof.machine import machine_of
from engine.proof.opening import load_truth, open_proven, prove

RETARGET = r"; it is not used here; make engines for this machine with: python -m export\.retarget "
REBUILD = r"; build it again with: python -m export\.build_engines "


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, which is not proven."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def say_proven(bundle: Path, **proof: Any) -> None:
    """Writes into the manifest that the engines were proven; on this machine, unless `proof` says something else."""
    path = bundle / "manifest.json"
    here = machine_of(Bundle.load(bundle).manifest, 1)
    values = {**json.loads(path.read_text()), "proof": {"status": "proven", "machine": here, **proof}}
    path.write_text(json.dumps(values))


def change_decoder(bundle: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    graph = onnx.load(bundle / "decoder.onnx")
    change(graph.graph)
    onnx.save(graph, bundle / "decoder.onnx")
    reseal(bundle)


def test_what_is_not_proven_is_proven_first(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine = open_proven(Bundle.load(bundle), 1)
    assert engine.decode(np.zeros((1, 192), np.float32)).shape == (1, 8, 8, 3)
    assert "its engines are unproven (the manifest does not say why); it is proven now" in caplog.text
    assert "proven on this machine in " in caplog.text


def test_what_was_proven_here_is_not_proven_again(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    say_proven(bundle)
    open_proven(Bundle.load(bundle), 1)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("machine", "threads", "max_batch", "reason"),
    [
        ({"cpu": "Zilog Z80, flags 0"}, 1, 32, "cpu Zilog Z80, flags 0, here "),
        ({"onnxruntime": "1.0"}, 1, 32, "onnxruntime 1.0, here "),
        ({}, 2, 32, "threads 1, here 2"),
        ({}, 1, 4, "max_batch 32, here 4"),
    ],
)
def test_what_was_proven_elsewhere_is_proven_again(
    bundle: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    machine: dict[str, str],
    threads: int,
    max_batch: int,
    reason: str,
) -> None:
    caplog.set_level(logging.INFO)
    here = machine_of(Bundle.load(bundle).manifest, 1)
    say_proven(bundle, machine={**here, **machine})
    open_proven(Bundle.load(bundle).with_max_batch_size(max_batch), threads)
    assert f"its engines were proven elsewhere: {reason}" in caplog.text
    assert "proven on this machine in " in caplog.text


def test_a_lost_rounding_is_not_served(bundle: Path) -> None:
    def truncate(graph: onnx.GraphProto) -> None:
        (rounding,) = [node for node in graph.node if node.op_type == "Round"]
        rounding.op_type = "Floor"

    change_decoder(bundle, truncate)
    with pytest.raises(
        ParityError, match=r"/bundle: stage engine \(encoder\.onnx and decoder\.onnx by onnx"
    ) as refusal:
        open_proven(Bundle.load(bundle), 1)
    assert "decode of samples is 0.5 levels too dark in the mean (tolerance 0.00065)" in str(refusal.value)
    refusal.match(r"differs from the tiny model on this machine: .*" + RETARGET)


def test_a_batch_size_that_goes_wrong_is_named(bundle: Path) -> None:
    def mix_up_threes(graph: onnx.GraphProto) -> None:
        """Rolls the images of a batch of three on by one."""
        nodes = [
            helper.make_node("Shape", ["levels"], ["shape"]),
            helper.make_node("Gather", ["shape", "first"], ["count"]),
            helper.make_node("Equal", ["count", "three"], ["wrong"]),
            helper.make_node("Cast", ["wrong"], ["by"], to=onnx.TensorProto.INT64),
            helper.make_node("Range", ["first", "count", "one"], ["rows"]),
            helper.make_node("Add", ["rows", "by"], ["moved"]),
            helper.make_node("Mod", ["moved", "count"], ["order"]),
            helper.make_node("Gather", ["levels", "order"], ["mixed"]),
        ]
        for name, value in {"first": 0, "one": 1, "three": 3}.items():
            graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        cast = graph.node[-1]
        cast.input[0] = "mixed"
        graph.node.remove(graph.node[-1])
        graph.node.extend([*nodes, cast])

    change_decoder(bundle, mix_up_threes)
    with pytest.raises(ParityError, match=r"dB PSNR in image \d \([A-Z]\w+ \+1\) in a batch of 3 \(tolerance 75\)"):
        open_proven(Bundle.load(bundle), 1)


def test_engines_that_were_proven_elsewhere_may_fail_here(bundle: Path) -> None:
    say_proven(bundle, machine={"cpu": "another"}, tolerances={**asdict(TOLERANCES["fp32"]), "latents": -1.0})
    with pytest.raises(ParityError, match=r"mu is off by 0\.00e\+00 of its spread of .* \(tolerance -1\.00e\+00\)"):
        open_proven(Bundle.load(bundle), 1)


def test_a_bundle_without_its_proof_is_refused_even_where_it_was_proven(bundle: Path) -> None:
    say_proven(bundle, machine=machine_of(Bundle.load(bundle).manifest, 1))
    values = json.loads((bundle / "manifest.json").read_text())
    del values["files"]["proof.safetensors"]
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"manifest\.json does not list proof\.safetensors; build it with: "):
        open_proven(Bundle.load(bundle), 1)


def test_a_proof_that_was_changed_is_refused(bundle: Path) -> None:
    with open(bundle / "proof.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(BundleError, match=r"proof\.safetensors was changed after it was built: its SHA-256 is "):
        Bundle.load(bundle)


def test_a_proof_of_other_graphs_is_refused(bundle: Path) -> None:
    tiny_truth(16).save(bundle / "proof.safetensors")
    reseal(bundle)
    with pytest.raises(BundleError, match=r"proof\.safetensors doesn't fit the graphs: its steps is .*" + REBUILD):
        open_proven(Bundle.load(bundle), 1)


def test_a_proof_of_another_model_is_refused(bundle: Path) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**values, "run": {"model_sha256": "ab" * 32}}))
    with pytest.raises(BundleError, match=r"is of a model .* says abababababab\.\.\." + REBUILD):
        open_proven(Bundle.load(bundle), 1)


@pytest.mark.parametrize(
    "tolerances",
    [
        {},
        {"latents": 1.0},
        {**asdict(TOLERANCES["fp32"]), "latents": "a"},
        {**asdict(TOLERANCES["fp32"]), "levels": math.nan},
        {**asdict(TOLERANCES["fp32"]), "mean_levels": None},
    ],
)
def test_tolerances_that_are_none_are_refused(bundle: Path, tolerances: dict[str, object]) -> None:
    say_proven(bundle, machine={}, tolerances=tolerances)
    with pytest.raises(BundleError, match=r"proof\.tolerances must have the numbers latents, .*not \{"):
        open_proven(Bundle.load(bundle), 1)


def test_bundles_of_before_there_was_a_proof_are_served_with_a_warning(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    del values["proof"], values["kinds"], values["files"]["proof.safetensors"]
    (bundle / "manifest.json").write_text(json.dumps({**values, "format_version": 3}))
    loaded = Bundle.load(bundle)
    open_proven(loaded, 1)
    assert "was built before bundles carried their proof" in caplog.text
    with pytest.raises(BundleError, match=r"/bundle carries no proof \(proof\.safetensors\) .*" + REBUILD):
        load_truth(loaded)


def test_what_fails_is_closed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        closed = False

        def encode(self, images: Any) -> Any:
            raise MemoryError

        def close(self) -> None:
            self.closed = True

    broken = Broken()
    monkeypatch.setattr("engine.proof.opening.open_backend", lambda *_: broken)
    with pytest.raises(MemoryError):
        open_proven(Bundle.load(bundle), 1)
    assert broken.closed


def test_the_proof_gives_its_figures(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    stage = prove(loaded, open_proven(loaded, 1))
    assert stage.what == "encoder.onnx and decoder.onnx by onnxruntime in fp32"
    assert {error.max_levels for error in stage.images.values()} == {0}
