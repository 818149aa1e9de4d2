"""The server as a whole: its ports, its end, and TLS."""

import asyncio
import subprocess
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from servers import run_python
from wires import (
    LIMIT_S,
    OWN_CONNECTION,
    SERVICE,
    Held,
    connected,
    echo,
    in_loop,
    path,
    quiet_log,  # noqa: F401
    refusal_of,
    unary,
)

from engine.errors import StartupError
from engine.transport import Server
from engine.transport.core import CoreCall
from engine.transport.permit import Unlimited
from engine.transport.tls import server_credentials


async def _started(port: int = 0, **methods: Any) -> tuple[Server, int]:
    """A server of these handlers, and its port."""
    server = Server([("grpc.so_reuseport", 0)])
    server.add_service(SERVICE, methods)
    port = server.listen(f"127.0.0.1:{port}")
    await server.start()
    return server, port


# The end.


@in_loop
async def test_calls_may_end_within_the_grace() -> None:
    held = Held()
    server, port = await _started(Held=unary(held))
    async with connected(f"127.0.0.1:{port}") as channel:
        running = asyncio.ensure_future(channel.unary_unary(path("Held"))(b"a"))
        await held.started.acquire()
        stopping = asyncio.ensure_future(server.stop(LIMIT_S))
        await _refused(port)
        assert not stopping.done()
        held.go.set()
        assert await running == b"a"
        await stopping
    assert "grpc-queue" not in [thread.name for thread in threading.enumerate()]


async def _refused(port: int) -> None:
    """Returns as soon as a port takes no connections."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:  # it closed in between
            continue
        writer.transport.abort()
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("grace", [0, -1, 0.01])
@in_loop
async def test_calls_that_outlast_the_grace_are_cancelled(grace: float) -> None:
    held = Held()
    server, port = await _started(Held=unary(held))
    async with connected(f"127.0.0.1:{port}") as channel:
        running = [asyncio.ensure_future(channel.unary_unary(path("Held"))(b"")) for _ in range(50)]
        for _ in running:
            await held.started.acquire()
        await server.stop(grace)
        for _ in running:
            await held.cancelled.acquire()
        for call in running:
            assert (await refusal_of(call)).code() is grpc.StatusCode.UNAVAILABLE
        await server.stop(grace)  # once more does nothing


@in_loop
async def test_who_is_sent_away_while_he_calls_and_calls_is_never_cancelled() -> None:
    server, port = await _started(Echo=unary(echo))
    answered = 0

    async def call_and_call(channel: grpc.aio.Channel) -> grpc.StatusCode:
        nonlocal answered
        try:
            while True:
                assert await channel.unary_unary(path("Echo"))(b"a") == b"a"
                answered += 1
        except grpc.aio.AioRpcError as refusal:
            return refusal.code()

    channels = [connected(f"127.0.0.1:{port}") for _ in range(4)]
    callers = [asyncio.ensure_future(call_and_call(channel)) for channel in channels for _ in range(8)]
    while answered < 100:
        await asyncio.sleep(0.01)
    await server.go_away()
    assert set(await asyncio.gather(*callers)) == {grpc.StatusCode.UNAVAILABLE}
    for channel in channels:
        await channel.close()
    await server.stop(0)


@in_loop
async def test_a_stop_before_the_start_frees_the_port() -> None:
    port = 0
    for _ in range(3):
        server = Server([("grpc.so_reuseport", 0)])
        port = server.listen(f"127.0.0.1:{port}")
        await server.stop(LIMIT_S)
    assert "grpc-queue" not in [thread.name for thread in threading.enumerate()]
    await server.stop(LIMIT_S)  # once more does nothing


@in_loop
async def test_servers_follow_one_another_on_a_port() -> None:
    port = 0
    for _ in range(3):
        server, port = await _started(port, Echo=unary(echo))
        second = Server([("grpc.so_reuseport", 0)])
        with pytest.raises(StartupError, match="can't listen on"):
            second.listen(f"127.0.0.1:{port}")
        async with connected(f"127.0.0.1:{port}") as channel:
            assert await channel.unary_unary(path("Echo"))(b"a") == b"a"
            await server.stop(LIMIT_S)


@pytest.mark.parametrize("calls", [0, 1])
def test_a_process_ends_that_never_stopped_its_server(calls: int, tmp_path: Path) -> None:
    script = f"""
import asyncio, grpc
from engine.transport import Server

async def main():
    started = asyncio.Event()
    async def handle(request, context):
        started.set()
        await asyncio.Event().wait()
    server = Server()
    server.add_service("test.Service", {{"Ask": grpc.unary_unary_rpc_method_handler(handle)}})
    port = server.listen("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{{port}}")
    if {calls}:
        call = channel.unary_unary("/test.Service/Ask")(b"")
        await started.wait()
    raise SystemExit(7)

asyncio.run(main())
"""
    result = run_python(["-c", script], tmp_path)
    assert result.returncode == 7, result.stderr


# TLS.


@in_loop
async def test_a_secure_port_tells_who_the_client_is(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-keyout", str(key), "-out", str(cert), "-subj", "/CN=anna", "-days", "2",
               "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    seen: dict[str, Any] = {}

    def look(call: CoreCall) -> Unlimited:
        seen.update(call.auth_context())
        return Unlimited()

    server = Server([("grpc.so_reuseport", 0)], look)
    server.add_service(SERVICE, {"Ask": unary(echo)})
    port = server.listen("127.0.0.1:0", server_credentials(cert, key, cert))
    await server.start()
    target = f"127.0.0.1:{port}"
    known = grpc.ssl_channel_credentials(cert.read_bytes(), key.read_bytes(), cert.read_bytes())
    stranger = grpc.ssl_channel_credentials(cert.read_bytes())
    async with grpc.aio.secure_channel(target, known, [OWN_CONNECTION]) as channel:
        assert await channel.unary_unary(path("Ask"))(bytes(10**6)) == bytes(10**6)
    assert seen["x509_common_name"] == [b"anna"]
    async with grpc.aio.secure_channel(target, stranger, [OWN_CONNECTION]) as channel:
        error = await refusal_of(channel.unary_unary(path("Ask"))(b""))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    async with connected(target) as channel:
        error = await refusal_of(channel.unary_unary(path("Ask"))(b""))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(0)
