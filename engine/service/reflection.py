"""The standard reflection service, grpc.reflection.v1 and, for older tools, v1alpha: two names for the same."""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

NAMES = ("grpc.reflection.v1.ServerReflection", str(reflection.SERVICE_NAME))


def servicer_of(services: Iterable[str]) -> Any:
    """What tells clients of these services, by their full names, and of itself."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(NAMES[0])
    except KeyError:  # grpcio-reflection has v1alpha only
        pool.Add(_version_1())
    return reflection.aio.ReflectionServicer((*services, *NAMES))


def add_to_server(servicer: Any, server: Any) -> None:
    """Adds the service to a server under both names, as generated code does for one."""
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in NAMES:
        server.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})


def _version_1() -> descriptor_pb2.FileDescriptorProto:
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    return text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
