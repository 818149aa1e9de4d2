"""A gRPC server for asyncio on gRPC's own core, with handlers and contexts as grpc.aio has them.

It is there for safety: one request whose path isn't UTF-8 ends a server of grpc.aio for good, and grpc.aio takes a
call's message before anyone can judge the call. Here a call is judged first. It is also cheaper: one thread waits for
core, and the event loop hears of a call once, when its request is there.
"""

from engine.transport.proof import prove
from engine.transport.server import Server

__all__ = ["Server", "prove"]
