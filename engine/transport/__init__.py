"""A gRPC server for asyncio that costs a fraction of grpc.aio's: same handlers, same contexts, on the same gRPC core.

grpc.aio wakes the event loop four times or more for each call. Here one thread waits for gRPC core, and the event loop
hears of a call once, when its request is there.
"""

from engine.transport.proof import prove
from engine.transport.server import Server

__all__ = ["Server", "prove"]
