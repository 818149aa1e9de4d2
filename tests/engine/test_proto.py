import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from environments import environment_with_oldest, needs_oldest
from servers import ROOT, run_python

from engine.errors import EngineError
from protos import dfcvae_pb2 as pb


@needs_oldest
def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, "protos/dfcvae.proto"]
    subprocess.run(command, cwd=ROOT, env=environment_with_oldest(os.environ), check=True)
    for name in ("dfcvae_pb2.py", "dfcvae_pb2.pyi", "dfcvae_pb2_grpc.py"):
        fresh, committed = ((folder / "protos" / name).read_text() for folder in (tmp_path, ROOT))
        assert fresh == committed, f"{name} is out of date: run `make protos`"


def test_every_message_and_field_is_documented() -> None:
    lines = (ROOT / "protos" / "dfcvae.proto").read_text().splitlines()
    undocumented = [
        line
        for before, line in itertools.pairwise(lines)
        if " = " in line and not line.startswith("syntax") and "//" not in before
    ]
    assert undocumented == []
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
    assert result.returncode == 2
    assert result.stderr == (
        "error: ONNX Runtime can't be imported (no such runtime here); pip install 'dfc-vae[cpu]'\n"
    )
