"""The standard reflection service, grpc.reflection.v1 and, for older tools, v1alpha: two names for the same."""

from collections.abc import Iterable
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

SERVICE: ServiceDescriptor = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
NAMES = ("grpc.reflection.v1.ServerReflection", str(reflection.SERVICE_NAME))


def servicer_of(files: Iterable[FileDescriptor]) -> Any:
    """What tells clients of the services that these files define, and of itself."""
    pool, names = DescriptorPool(), list(NAMES)
    alpha = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(alpha)
    # grpcio-reflection has v1alpha only.
    pool.Add(text_format.Parse(text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto()))
    for file in files:
        pool.AddSerializedFile(file.serialized_pb)
        names += [service.full_name for service in file.services_by_name.values()]
    return reflection.aio.ReflectionServicer(names, pool)
