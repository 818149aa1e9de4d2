"""A trial of the transport, before anybody relies on it.

It is built on grpcio's private interface, and a grpcio in which that has changed may well start and listen, and never
answer a call. So a server process has calls of each kind answered over loopback before it says that it serves.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from engine.errors import StartupError
from engine.process.threads import in_thread
from engine.transport.core import INSTALL
from engine.transport.server import Server

_LIMIT_S = 10.0
_SERVICE = "dfcvae.Proof"
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
_MESSAGES = [b"first", b"second"]
_REFUSAL = (grpc.StatusCode.ABORTED, "refused", (("proof-bin", b"\xff"),))


async def prove() -> None:
    """Answers a call, a stream and one that is refused, from this process to itself.

    Raises:
        StartupError: When one isn't answered as it should be.
    """
    try:
        server = Server([("grpc.so_reuseport", 0)])
        server.add_service(_SERVICE, _HANDLERS)
        port = server.listen("127.0.0.1:0")
        await server.start()
        await in_thread(_call, f"127.0.0.1:{port}")
        await asyncio.wait_for(server.stop(0), _LIMIT_S)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, grpc.RpcError):
            reason = f"a call to itself ended with {error.code().name}: {error.details()}"
        raise StartupError(
            f"the server's transport fails with grpcio {grpc.__version__} ({reason}); {INSTALL}"
        ) from error


async def _echo(request: bytes, _: Any) -> bytes:
    return request


async def _echo_all(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def _refuse(_: bytes, context: Any) -> bytes:
    await context.abort(*_REFUSAL)
    raise AssertionError("abort raises")


_HANDLERS = {
    "Echo": grpc.unary_unary_rpc_method_handler(_echo),
    "EchoAll": grpc.stream_stream_rpc_method_handler(_echo_all),
    "Refuse": grpc.unary_unary_rpc_method_handler(_refuse),
}


def _call(target: str) -> None:
    with grpc.insecure_channel(target, _OPTIONS) as channel:
        answer = channel.unary_unary(f"/{_SERVICE}/Echo")(_MESSAGES[0], timeout=_LIMIT_S)
        answers = list(channel.stream_stream(f"/{_SERVICE}/EchoAll")(iter(_MESSAGES), timeout=_LIMIT_S))
        if [answer, *answers] != [_MESSAGES[0], *_MESSAGES]:
            raise RuntimeError(f"{_MESSAGES} came back as {answer!r} and {answers}")
        call = channel.unary_unary(f"/{_SERVICE}/Refuse").future(b"", timeout=_LIMIT_S)
        refusal = call.code(), call.details(), tuple(map(tuple, call.trailing_metadata()))
        if refusal != _REFUSAL:
            raise RuntimeError(f"{_REFUSAL} came back as {refusal}")
