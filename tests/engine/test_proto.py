import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from environments import environment_with_oldest, needs_oldest
from scripts import require_refused
from servers import ROOT, run_python

from engine.errors import EngineError
from protos import dfcvae_pb2 as pb
from protos import open_inference_pb2


@needs_oldest
def test_the_generated_code_is_that_of_the_protos(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    protos = ["protos/dfcvae.proto", "protos/open_inference.proto"]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, *protos]
    subprocess.run(command, cwd=ROOT, env=environment_with_oldest(os.environ), check=True)
    for path in (ROOT / "protos").glob("*_pb2*"):
        fresh, committed = (tmp_path / "protos" / path.name).read_text(), path.read_text()
        if path.name == "open_inference_pb2.py":
            fresh = fresh.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
        assert fresh == committed, f"{path.name} is out of date: run `make protos`"


@pytest.mark.parametrize("proto", ["dfcvae", "open_inference"])
def test_every_message_and_field_is_documented(proto: str) -> None:
    lines = (ROOT / "protos" / f"{proto}.proto").read_text().splitlines()
    undocumented = [
        line
        for before, line in itertools.pairwise(lines)
        if line.lstrip().startswith(("message", "oneof", "rpc")) or " = " in line
        if not line.startswith("syntax") and "//" not in before
    ]
    assert undocumented == []


def test_the_protocols_messages_are_those_of_others_on_the_wire() -> None:
    """Beside theirs in one process: each has its messages in a pool of its own."""
    theirs = importlib.import_module("tritonclient.grpc.service_pb2").DESCRIPTOR.message_types_by_name
    assert len(open_inference_pb2.DESCRIPTOR.message_types_by_name) == 14

    def fields(message: Any) -> Any:
        inner = {one.name: fields(one) for one in message.nested_types}
        return {one.number: (one.name, one.type, one.is_repeated) for one in message.fields}, inner

    for name, message in open_inference_pb2.DESCRIPTOR.message_types_by_name.items():
        assert fields(message) == fields(theirs[name])


def test_the_methods_of_latent_engine() -> None:
    methods = {"Encode", "Decode", "Edit", "EditStream", "Interpolate", "Sample", "GetModel"}
    assert set(pb.DESCRIPTOR.services_by_name["LatentEngine"].methods_by_name) == methods


def test_every_domain_error_has_a_grpc_status() -> None:
    import grpc

    kinds = [EngineError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert len(kinds) > 8
    assert {kind.status for kind in kinds} <= set(grpc.StatusCode.__members__)


IMPORT_ALL = """
import importlib, pkgutil, sys
import engine
for module in pkgutil.walk_packages(engine.__path__, "engine."):
    importlib.import_module(module.name)
    print(module.name)
print("torch" in sys.modules)
"""


def test_every_module_is_imported_where_torch_cannot_be(tmp_path: Path) -> None:
    result = run_python(["-c", IMPORT_ALL], tmp_path)
    assert result.returncode == 0, result.stderr
    *modules, torch_was_loaded = result.stdout.split()
    assert torch_was_loaded == "False"
    sources = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "engine").rglob("*.py"))
    assert set(modules) == {".".join(path.parts).removesuffix(".__init__") for path in sources} - {"engine"}


@pytest.mark.parametrize("name", ["torch", "torchvision", "onnx", "trainer", "export"])
def test_the_blocker_blocks(tmp_path: Path, name: str) -> None:
    result = run_python(["-c", f"import {name}"], tmp_path)
    assert result.returncode == 1
    assert f"{name} was made unimportable by a test" in result.stderr


def test_a_missing_runtime_is_named_with_its_extra(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "onnxruntime.py").write_text("raise ImportError('no such runtime here')")
    result = run_python(["-m", "engine", "--bundle", str(tiny_bundle), "--port", "0"], tmp_path)
    require_refused(result, "ONNX Runtime can't be imported (no such runtime here); pip install 'dfc-vae[cpu]'\n")
