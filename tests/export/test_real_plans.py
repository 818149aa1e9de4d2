"""Plans of every graph that export writes, by NVIDIA's own builder: TensorRT for RTX needs neither GPU nor driver."""

import ast
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builds import WIDE
from onnx import TensorProto, helper
from runs import ATTRIBUTES, FORMS, LATENT_DIM, small_vae, smooth_images, write_run

import engine.backends.tensorrt
import export.engines.plans
import export.engines.tensorrt_8
from engine.backends.tensorrt import TARGETS
from engine.bundle import Bundle
from engine.errors import BackendError
from engine.latents import Directions
from export.build_engines import BuildConfig, build
from export.engines.plans import PlanBuilder
from export.errors import InputError
from export.graphs.edit import write_edit_by_steps
from export.graphs.fp16 import write_half
from export.graphs.int8 import Calibration, write_int8
from export.graphs.names import DECODER_FORMS, ENCODER_FORMS, INT8_ENCODERS
from export.graphs.trace import write_decoder, write_encoder
from export.proof.reference import EagerBackend

if (sys.platform, platform.machine()) != ("linux", "x86_64"):
    pytest.skip("TensorRT for RTX has wheels for x86-64 Linux", allow_module_level=True)
import tensorrt_rtx_bindings as trt
from tensorrt_names import read_names

NETWORKS = ("seed-64", "paper-64")
DIRECTIONS = Directions(ATTRIBUTES, 2 * np.eye(3, LATENT_DIM, dtype=np.float32), (20,) * 3, (20,) * 3, "train")


@pytest.fixture(scope="module", params=NETWORKS)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All graphs of a network, in the folders fp32, fp16 and int8."""
    folder, model = tmp_path_factory.mktemp("graphs"), small_vae(FORMS[request.param])
    full, half, small = (folder / name for name in ("fp32", "fp16", "int8"))
    for place in (full, half, small):
        place.mkdir()
    encoders = {form: write_encoder(model, form, full, "ab") for form in ENCODER_FORMS}
    decoders = {form: write_decoder(model, form, full, "ab") for form in DECODER_FORMS}
    calibration = Calibration.of(EagerBackend(model), smooth_images(8, 64), DIRECTIONS)
    for name in (*encoders.values(), *decoders.values()):
        write_half(full / name, half / name)
    for name in (*(encoders[form] for form in INT8_ENCODERS), *decoders.values()):
        write_int8(full / name, small / name, calibration, symmetric=True)
        write_half(small / name, small / name)
    for place in (full, half, small):
        write_edit_by_steps(place / "encoder.onnx", place / "decoder.onnx", place / "edit.onnx")
    return folder


def plan_of(graph: Path, folder: Path, said: list[str], *targets: str) -> dict[str, Any]:
    cache = folder / "timing.cache"
    builder = PlanBuilder(max_batch=8, timing_cache=cache, say=said.append, compute_capabilities=targets)
    return builder.build(graph, folder / f"{graph.stem}.plan", backend="tensorrt-rtx")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nvidia_builds_every_graph(graphs: Path, tmp_path: Path, precision: str) -> None:
    said: list[str] = []
    found = sorted((graphs / precision).glob("*.onnx"))
    assert {"encoder", "decoder", "edit"} < {graph.stem for graph in found}
    for graph in found:
        settings = plan_of(graph, tmp_path, said)
        assert settings["strongly_typed"]
        assert settings["flags"] == ["no TF32"]
        assert (tmp_path / f"{graph.stem}.plan").stat().st_size > 10_000
    assert not [line for line in said if "error" in line]
    assert not (tmp_path / "timing.cache").exists()


def test_a_plan_is_for_the_gpus_that_are_asked_for(graphs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    plan_of(graphs / "fp16" / "decoder.onnx", tmp_path, said, "8.9", "12.0")
    assert any("for compute capability 8.9, 12.0" in line for line in said)


def test_a_refused_graph_is_named_by_node_and_rule(graphs: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"can't build encoder\.onnx: .*log_var/Gemm.*FP32 GEMM is not supported"):
        plan_of(graphs / "fp16" / "encoder.onnx", tmp_path, [], "7.5")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"TensorRT for RTX [\d.]+ can't read bad\.onnx: Assertion failed: .*parse"):
        plan_of(bad, tmp_path, [])
    for operator, kind, rule in (
        ("Transpose", TensorProto.UINT8, r"turn: first input has type UInt8 but must have type [^/]*"),
        ("Det", TensorProto.FLOAT, "checkDet fails"),
    ):
        doors = [helper.make_tensor_value_info(name, kind, None) for name in ("images", "turned")]
        doors[0] = helper.make_tensor_value_info("images", kind, ["batch", 4, 4])
        nodes = [helper.make_node(operator, ["images"], ["turned"], name="turn")]
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(helper.make_graph(nodes, "bad", doors[:1], doors[1:]), opset_imports=opset), bad)
        with pytest.raises(BackendError, match=rf"can't read bad\.onnx: {operator} turn: [^/]*{rule}$"):
            plan_of(bad, tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_what_fails_in_one_build_is_not_said_of_the_next(graphs: Path, tmp_path: Path) -> None:
    first: list[str] = []
    second: list[str] = []
    with pytest.raises(BackendError):
        plan_of(graphs / "fp16" / "encoder.onnx", tmp_path, first, "7.5")
    with pytest.raises(BackendError, match=r"mu/Gemm|log_var/Gemm"):
        plan_of(graphs / "fp32" / "encoder.onnx", tmp_path, second, "7.5")
    assert any("Turing" in line for line in first)
    assert any("Turing" in line for line in second)


def test_an_interruption_within_a_callback_is_not_lost(
    graphs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("TensorRT error"):
            os.kill(os.getpid(), signal.SIGINT)

    targets = ("7.5",)  # whose refusal the builder says by a callback
    builder = PlanBuilder(max_batch=8, timing_cache=tmp_path / "cache", say=interrupt, compute_capabilities=targets)
    with pytest.raises(KeyboardInterrupt):
        builder.build(graphs / "fp16" / "encoder.onnx", tmp_path / "plan", backend="tensorrt-rtx")
    assert capfd.readouterr().err == ""


def test_targets_are_those_of_the_builder() -> None:
    theirs = set(trt.ComputeCapability.__members__) - {"NONE", "CURRENT", "SM75"}
    assert {f"SM{target.replace('.', '')}" for target in TARGETS} == theirs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("shared") / "run", samples=4)


def no_gpu() -> bool:
    return not Path("/dev/nvidiactl").exists()


@pytest.mark.skipif(not no_gpu(), reason="there is a GPU here")
def test_a_bundle_built_without_a_gpu_says_that_it_is_unproven(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = BuildConfig(run=run, out=tmp_path / "bundle", backend="tensorrt-rtx", max_batch=4, **WIDE)
    manifest = Bundle.load(build(config, said.append)).manifest
    assert (manifest.backend, manifest.precision) == ("tensorrt-rtx", "fp16")
    assert (manifest.engine.encoder, manifest.engine.decoder) == ("encoder.fp16.rtx.plan", "decoder.fp16.rtx.plan")
    assert manifest.engine.edit == "edit.fp16.rtx.plan"
    assert manifest.tensorrt["builder"].keys() == {name for name in manifest.files if name.endswith(".plan")}
    assert list(manifest.parity["stages"]) == ["portable", "reduced", "proof"]
    assert manifest.proof["status"] == "unproven"
    assert "GPU" in manifest.proof["reason"]
    assert manifest.tensorrt["device"] == {
        "tensorrt-rtx": trt.__version__,
        "compute_capabilities": ["8.0", "8.6", "8.9", "12.0"],
    }
    assert any(line.startswith("unproven: ") for line in said)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.skipif(not no_gpu(), reason="there is a GPU here")
def test_a_build_that_fails_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.flags.TARGETS", ("7.5",))
    config = BuildConfig(
        run=run, out=tmp_path / "bundle", backend="tensorrt-rtx", precision="fp32", compute_capability=("7.5",), **WIDE
    )
    with pytest.raises(BackendError, match="FP32 GEMM is not supported"):
        build(config, print)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"compute_capability": ("9.0",)}, r"--compute-capability 9\.0: .* builds for 8\.0, .*H200 \(9\.0\).*tensorrt"),
        ({"compute_capability": ("7.5",)}, r"--compute-capability 7\.5: .* builds for 8\.0, .*T4 \(7\.5\).*tensorrt"),
        ({"compute_capability": ("8.9",), "backend": "openvino"}, r"--backend openvino builds for this machine"),
        ({"compute_capability": ("8.9",), "backend": "auto"}, r"--backend auto builds for this machine"),
        ({"hardware_compatibility": "ampere-plus"}, r"--hardware-compatibility ampere-plus: only --backend tensorrt"),
        ({"triton": Path("repository")}, r"--triton: Triton runs no plans of TensorRT for RTX"),
        ({"precision": "bf16"}, r"not supported.*by name: tensorrt-rtx on cuda \(fp32, fp16"),
    ],
)
def test_what_tensorrt_for_rtx_does_not_do(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        build(BuildConfig(**{"run": run, "out": tmp_path / "bundle", "backend": "tensorrt-rtx", **flags}), print)
    assert not list(tmp_path.iterdir())


CLASSES: dict[str, Any] = {
    "trt": trt,
    "tensorrt": trt,
    "_tensorrt": trt,
    "builder": trt.Builder,
    "config": trt.IBuilderConfig,
    "network": trt.INetworkDefinition,
    "parser": trt.OnnxParser,
    "error": trt.ParserError,
    "inspector": trt.EngineInspector,
    "profile": trt.IOptimizationProfile,
    "layer": trt.ILayer,
    "_engine": trt.ICudaEngine,
    "engine": trt.ICudaEngine,
    "context": trt.IExecutionContext,
    "runtime": trt.Runtime,
    "settings": trt.IRuntimeConfig,
}
"""What the variables of our code hold, by their names."""
OLDER = {"ILayer.precision", "ILayer.set_output_type"}
"""Only for TensorRT 8.6, whose networks are not typed."""
RTX_ALONE = {
    "module.ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}
WORDS = {
    "DataType": {"UINT8", "FLOAT", "HALF"},
    "TensorIOMode": {"INPUT", "OUTPUT"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "HardwareCompatibilityLevel": {"NONE", "SAME_COMPUTE_CAPABILITY", "AMPERE_PLUS"},
    "TacticSource": {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"},
}
"""Names that our code has as words."""
MODULES = (engine.backends.tensorrt, export.engines.tensorrt_8, export.engines.plans)


def names_used() -> set[str]:
    """What our code takes from TensorRT, as "Class.name"; names of the module itself as "module.name"."""
    used = {f"{holder}.{name}" for holder, names in WORDS.items() for name in names}
    for module in MODULES:
        for node in ast.walk(ast.parse(Path(module.__file__ or "").read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                holder = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                if holder in CLASSES:
                    kind = CLASSES[holder]
                    used.add(f"{'module' if kind is trt else kind.__name__}.{node.attr}")
                elif isinstance(getattr(trt, holder, None), type):
                    used.add(f"{holder}.{node.attr}")
    assert {"BuilderFlag.TF32", "LayerType.QUANTIZE", "IExecutionContext.execute_async_v3"} < used
    return used


def test_every_name_that_is_used_is_there_in_tensorrt_for_rtx() -> None:
    there = {f"module.{name}" for name in dir(trt)}
    there |= {f"{name}.{each}" for name, kind in vars(trt).items() if isinstance(kind, type) for each in dir(kind)}
    assert names_used() - there == OLDER


def test_every_name_that_is_used_is_there_in_tensorrt_11(tmp_path: Path) -> None:
    names = read_names(tmp_path, "11")
    there = {f"{kind}.{name}" for kind, found in names.items() for name in found}
    assert names_used() - there == OLDER | RTX_ALONE
