"""The standard reflection service, grpc.reflection.v1 and, for older tools, v1alpha: two names for the same."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
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
    # With what refusals have as their details, so that tools can show it.
    for file in (*files, error_details_pb2.DESCRIPTOR):
        for one in (*file.dependencies, file):
            pool.AddSerializedFile(one.serialized_pb)
        names += [service.full_name for service in file.services_by_name.values()]
    return reflection.aio.ReflectionServicer(names, _Pool(pool))


class _Pool:
    """A pool that knows in which file a method is, too, as `grpcurl describe` asks; protobuf's own doesn't."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - protobuf's name
        """KeyError where nothing has that name."""
        with suppress(KeyError):
            return self._pool.FindFileContainingSymbol(symbol)
        return self._pool.FindMethodByName(symbol).containing_service.file
