"""The standard reflection service, grpc.reflection.v1 and, for older tools, v1alpha: two names for the same."""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

NAMES = ("grpc.reflection.v1.ServerReflection", str(reflection.SERVICE_NAME))


def servicer_of(files: Iterable[FileDescriptor]) -> Any:
    """What tells clients of the services that these files define, and of itself."""
    pool, names = DescriptorPool(), list(NAMES)
    alpha = _copy(reflection_pb2.DESCRIPTOR)
    for own in (alpha, _version_1(alpha)):  # grpcio-reflection has v1alpha only
        pool.Add(own)
    for file in files:
        pool.Add(_copy(file))
        names += [service.full_name for service in file.services_by_name.values()]
    return reflection.aio.ReflectionServicer(names, pool)


def add_to_server(servicer: Any, server: Any) -> None:
    """Adds the service to a server under both names, as generated code does for one."""
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in NAMES:
        server.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})


def _copy(file: FileDescriptor) -> FileDescriptorProto:
    copy = FileDescriptorProto()
    file.CopyToProto(copy)
    return copy


def _version_1(alpha: FileDescriptorProto) -> FileDescriptorProto:
    return text_format.Parse(text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto())
