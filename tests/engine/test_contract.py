"""The wire contract as a document: nothing in protos/dfcvae.proto goes without a comment."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from servers import ROOT

KINDS = {f"{kind}DescriptorProto" for kind in ("", "Enum", "EnumValue", "Field", "Oneof", "Service", "Method")}


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorProto:
    """The file as protoc reads it, comments included."""
    found = tmp_path_factory.mktemp("contract") / "descriptors"
    options = ["--include_source_info", f"--descriptor_set_out={found}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *options, "protos/dfcvae.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(found.read_bytes()).file
    return file


def parts(message: Any, path: tuple[int, ...] = (), name: str = "") -> Iterator[tuple[tuple[int, ...], str]]:
    """All that has a name inside a descriptor, with protoc's path to it."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.name not in KINDS:
            continue
        for index, part in enumerate(value):
            inside = (*path, field.number, index)
            if not synthetic(part, message):
                yield inside, f"{name}.{part.name}".lstrip(".")
                yield from parts(part, inside, f"{name}.{part.name}")


def synthetic(part: Any, message: Any) -> bool:
    """Whether protoc made it up: the entry of a map, the oneof of an optional field."""
    if isinstance(part, descriptor_pb2.DescriptorProto):
        return part.options.map_entry
    return isinstance(part, descriptor_pb2.OneofDescriptorProto) and part.name.startswith("_")


def test_everything_in_the_contract_has_a_comment(contract: descriptor_pb2.FileDescriptorProto) -> None:
    commented = {tuple(one.path) for one in contract.source_code_info.location if one.leading_comments.strip()}
    names = dict(parts(contract))
    assert {"EncodeRequest", "ImageBatch.images", "Limits.max_queued_images", "LatentEngine.Edit"} <= {*names.values()}
    assert [name for path, name in names.items() if path not in commented] == []
