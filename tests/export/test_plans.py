"""The builder against the stand-in of tests/gpu_stand_in.py: real graphs, no device."""

import json
import os
import re
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_stand_in
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from runs import small_vae

from engine.errors import BackendError
from export.engines.plans import WORKSPACE_BYTES, PlanBuilder, layers_of
from export.graphs.edit import write_edit_by_steps
from export.graphs.fp16 import KEPT, write_half
from export.graphs.names import DECODER_FORMS, ENCODER_FORMS
from export.graphs.trace import write_decoder, write_encoder

VERSIONS = ["8.6.0", "10.3.0", "11.1.0"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder and decoder in their plain forms, with their FP16 forms."""
    folder = tmp_path_factory.mktemp("graphs")
    model = small_vae()
    for name in (write_encoder(model, "plain", folder, "ab" * 32), write_decoder(model, "plain", folder, "ab" * 32)):
        write_half(folder / name, (folder / name).with_suffix(".fp16.onnx"))
    return folder


def build(graph: Path, folder: Path, said: list[str] | None = None, max_batch: int = 8) -> dict[str, Any]:
    say = print if said is None else said.append
    cache = folder / "timing.cache"
    return PlanBuilder(max_batch=max_batch, timing_cache=cache, say=say).build(graph, folder / "some.plan")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_of_a_typed_graph(graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    trt = gpu_stand_in.install(monkeypatch, version)
    settings = build(graphs / "decoder.fp16.onnx", tmp_path)
    (config,) = trt.configs
    assert (tmp_path / "some.plan").read_bytes()
    assert config.pools == {trt.MemoryPoolType.WORKSPACE: WORKSPACE_BYTES}
    assert config.profiles[0].shapes == {"latents": ((1, 16), (8, 16), (8, 16))}
    assert settings["profile"] == {"min": 1, "opt": 8, "max": 8}
    assert settings["workspace_bytes"] == WORKSPACE_BYTES
    assert config.tactic_sources == -1  # all
    kept = [layer for layer in config.network.layers if layer.precision is not None]
    flags = {flag.name for flag in config.flags}
    if version == "8.6.0":
        assert not settings["strongly_typed"]
        assert flags == {"FP16", "PREFER_PRECISION_CONSTRAINTS"}
        assert settings["flags"] == ["no TF32", "FP16", "PREFER_PRECISION_CONSTRAINTS"]
        assert {layer.precision for layer in kept} == {trt.DataType.FLOAT}
        assert all(layer.output_types == {0: trt.DataType.FLOAT} for layer in kept)
        assert {layer.name for layer in kept} == {
            f"{KEPT}{name}" for name in ("/decoder/Sigmoid", "/Mul", "/Round", "/Clip", "/Transpose")
        }
        assert config.features == {trt.PreviewFeature.PROFILE_SHARING_0806: True}
    else:
        assert settings["strongly_typed"]
        assert (flags, settings["flags"], kept, config.features) == (set(), ["no TF32"], [], {})


@pytest.mark.parametrize("version", VERSIONS)
def test_an_fp32_graph_is_computed_without_tf32(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    trt = gpu_stand_in.install(monkeypatch, version)
    assert build(_float_graph(tmp_path / "float.onnx"), tmp_path)["flags"] == ["no TF32"]
    assert not trt.configs[0].flags


@pytest.mark.parametrize("version", VERSIONS)
def test_a_quantised_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    trt = gpu_stand_in.install(monkeypatch, version)
    settings = build(_float_graph(tmp_path / "int8.onnx", quantised=True), tmp_path)
    assert settings["flags"] == (["no TF32", "INT8"] if version == "8.6.0" else ["no TF32"])
    assert {flag.name for flag in trt.configs[0].flags} == set(settings["flags"]) - {"no TF32"}


def test_kernels_can_be_restricted_to_some_sources(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = gpu_stand_in.install(monkeypatch, "8.6.0")
    graph, cache, tactics = graphs / "decoder.fp16.onnx", tmp_path / "cache", ["JIT_CONVOLUTIONS"]
    PlanBuilder(max_batch=8, timing_cache=cache, say=print, tactics=tactics).build(graph, tmp_path / "plan")
    assert trt.configs[0].tactic_sources == 1 << int(trt.TacticSource["JIT_CONVOLUTIONS"])


def test_what_is_fp32_in_the_parts_is_fp32_in_an_edit(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = gpu_stand_in.install(monkeypatch, "8.6.0")
    parts = graphs / "encoder.fp16.onnx", graphs / "decoder.fp16.onnx"
    write_edit_by_steps(*parts, tmp_path / "edit.onnx")
    for graph in (*parts, tmp_path / "edit.onnx"):
        build(graph, tmp_path)
    layers = [config.network.layers for config in trt.configs]
    encoder, decoder, both = ({each.name for each in found if each.precision is not None} for found in layers)
    prefixed = {f"encode/{name}" for name in encoder} | {f"decode/{name}" for name in decoder}
    assert both == prefixed - {f"encode/{KEPT}/encoder/log_var/Gemm"}  # which an edit does without
    assert trt.configs[2].profiles[0].shapes.keys() == {"images", "steps"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_layers_of_a_plan_are_written_beside_it(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    gpu_stand_in.install(monkeypatch, version)
    build(graphs / "decoder.fp16.onnx", tmp_path)
    assert layers_of(tmp_path / "some.plan").name == "some.layers.json"
    layers = json.loads(layers_of(tmp_path / "some.plan").read_text())["Layers"]
    precisions = {layer["Name"]: layer["Precision"] for layer in layers}
    assert precisions[f"{KEPT}/Round"] == "FLOAT"
    assert precisions["/decoder/linear/Gemm"] == "HALF"


def test_a_plan_may_be_for_other_gpus_too(graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def levels(version: str, compatibility: str) -> str:
        trt = gpu_stand_in.install(monkeypatch, version)
        graph, cache = graphs / "decoder.fp16.onnx", tmp_path / "cache"
        builder = PlanBuilder(max_batch=8, timing_cache=cache, say=print, compatibility=compatibility)
        builder.build(graph, tmp_path / "plan")
        return str(trt.configs[0].hardware_compatibility_level.name)

    assert levels("8.6.0", "none") == "NONE"
    assert levels("8.6.0", "ampere-plus") == "AMPERE_PLUS"
    assert levels("11.1.0", "same-compute-capability") == "SAME_COMPUTE_CAPABILITY"
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.0 has no hardware compatibility same-compute-capability"):
        levels("8.6.0", "same-compute-capability")


def test_every_form_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_stand_in.install(monkeypatch, "8.6.0")
    model = small_vae()
    names = [write_encoder(model, form, tmp_path, "ab" * 32) for form in ENCODER_FORMS]
    names += [write_decoder(model, form, tmp_path, "ab" * 32) for form in DECODER_FORMS]
    for name in names:
        write_half(tmp_path / name, tmp_path / f"half.{name}")
        build(tmp_path / f"half.{name}", tmp_path)


def test_warnings_and_progress_are_said_once(graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_stand_in.install(monkeypatch, "10.3.0")
    said: list[str] = []
    build(graphs / "encoder.fp16.onnx", tmp_path, said)
    assert said[0].startswith("building some.plan with TensorRT 10.3.0 on NVIDIA Stand-In (")
    assert said[1:-1] == [
        "TensorRT warning: a warning of the builder",
        "Building Engine: 1 of 2",
        "Building Engine: 2 of 2",
    ]
    assert re.fullmatch(r"built some\.plan: 0\.\d MB in 0 s", said[-1])


class Interrupted(ThreadPoolExecutor):
    """A signal comes before the main thread waits for what it has begun."""

    def submit(self, *work: Any, **settings: Any) -> Future[Any]:
        super().submit(*work, **settings)
        raise KeyboardInterrupt


@pytest.mark.parametrize("early", [False, True])
def test_an_interruption_stops_the_timing_of_kernels(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    def build_for_ever(_: object, network: Any, config: Any) -> None:
        if not early:
            os.kill(os.getpid(), signal.SIGINT)
        while config.progress_monitor.step_complete("Building Engine", 0):
            time.sleep(0.01)

    gpu_stand_in.install(monkeypatch, "10.3.0")
    monkeypatch.setattr(gpu_stand_in._Builder, "build_serialized_network", build_for_ever)
    if early:
        monkeypatch.setattr("export.engines.plans.ThreadPoolExecutor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(graphs / "encoder.fp16.onnx", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_timing_cache_is_read_written_and_replaced(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "timing.cache"
    gpu_stand_in.install(monkeypatch, "10.3.0")
    assert build(graphs / "encoder.fp16.onnx", tmp_path)["timing_cache"] == "new"
    assert cache.read_bytes() == b"cache of 10.3.0"
    assert build(graphs / "decoder.fp16.onnx", tmp_path)["timing_cache"] == "read"

    gpu_stand_in.install(monkeypatch, "11.1.0")
    said: list[str] = []
    assert build(graphs / "encoder.fp16.onnx", tmp_path, said)["timing_cache"] == "new"
    assert f"{cache} is of another GPU or TensorRT, or damaged; its kernels are timed anew" in said
    assert cache.read_bytes() == b"cache of 11.1.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.layers.json", "some.plan", "timing.cache"]


@pytest.mark.parametrize(
    ("version", "where"), [("8.6.0", "node 0: UINT8 is for"), ("10.3.0", "Transpose turn: UINT8 is for")]
)
def test_a_graph_that_tensorrt_cannot_read_is_refused_by_node_and_reason(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, where: str
) -> None:
    gpu_stand_in.install(monkeypatch, version)
    graph = _graph_that_moves_bytes(graphs / "bytes.onnx")
    with pytest.raises(BackendError, match=rf"TensorRT {version} can't read bytes\.onnx: {where}"):
        build(graph, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_build_says_why_and_leaves_nothing(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = gpu_stand_in.install(monkeypatch, "8.6.0")
    monkeypatch.setattr("export.engines.tensorrt_8.allow_precisions", lambda *_: [])
    with pytest.raises(BackendError, match=r"can't build decoder\.fp16\.onnx: Error Code 4: precision flags"):
        build(graphs / "decoder.fp16.onnx", tmp_path)
    assert trt.configs
    assert not list(tmp_path.iterdir())


def test_without_tensorrt_the_extra_is_named(graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"needs TensorRT, which can't be imported.*'dfc-vae\[tensorrt\]'"):
        build(graphs / "decoder.fp16.onnx", tmp_path)


def _float_graph(path: Path, quantised: bool = False) -> Path:
    """A matrix product of float latents, as FP32 and as Q/DQ."""
    nodes = [helper.make_node("MatMul", ["latents", "weight"], ["mu"], name="product")]
    constants = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")]
    if quantised:
        nodes[0].input[0] = "rough"
        nodes.insert(0, helper.make_node("QuantizeLinear", ["latents", "scale", "zero"], ["small"], name="q"))
        nodes.insert(1, helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["rough"], name="dq"))
        constants += [helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])]
        constants += [helper.make_tensor("zero", TensorProto.INT8, [], [0])]
    doors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("latents", "mu")]
    graph = helper.make_graph(nodes, "float", doors[:1], doors[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _graph_that_moves_bytes(path: Path) -> Path:
    """uint8 is turned before it is cast."""
    nodes = [
        helper.make_node("Transpose", ["images"], ["turned"], name="turn", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["turned"], ["mu"], name="cast", to=TensorProto.FLOAT),
    ]
    doors = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4, 4, 3]),
        helper.make_tensor_value_info("mu", TensorProto.FLOAT, ["batch", 3, 4, 4]),
    ]
    graph = helper.make_graph(nodes, "bytes", doors[:1], doors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
