"""A server proves what isn't proven on its machine, and serves nothing that fails."""

from pathlib import Path

import numpy as np
import onnx
from bundles import reseal, write_tiny_bundle
from servers import run_python, server_of
from tiny_model import latents_of, random_images

from engine.client import Client


def lose_rounding(bundle: Path) -> None:
    graph = onnx.load(bundle / "decoder.onnx")
    (rounding,) = [node for node in graph.graph.node if node.op_type == "Round"]
    rounding.op_type = "Floor"
    onnx.save(graph, bundle / "decoder.onnx")
    reseal(bundle)


def test_a_server_does_not_start_with_engines_that_fail_their_proof(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    lose_rounding(bundle)
    result = run_python(["-m", "engine", "--bundle", str(bundle), "--port", "0"], tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "stage engine (encoder.onnx and decoder.onnx by onnxruntime in fp32) differs from the tiny model" in error
    assert "levels too dark in the mean (tolerance 0.00065)" in error
    assert f"python -m export.retarget {bundle}" in error


def test_a_reloaded_bundle_is_proven_before_it_takes_over(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with server_of(bundle, tmp_path) as server, Client(server.target) as client:
        server.wait_for_log("proven on this machine")
        lose_rounding(bundle)
        server.hang_up()
        log = server.wait_for_log("is refused, the old one stays")
        assert "levels too dark in the mean" in log
        images = random_images(2, seed=1)
        np.testing.assert_array_equal(client.encode(images).mu, latents_of(images))
