"""The server process: one bundle behind one port, with health, reflection and an orderly end."""

import asyncio
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.backends import Backend
from engine.bundle import Bundle
from engine.errors import StartupError
from engine.interceptor import CallInterceptor
from engine.service import MAX_MESSAGE_BYTES, SERVICE_NAME, LatentEngine, Settings
from protos import dfcvae_pb2_grpc

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Otherwise a second server on the same port would quietly take half of the connections.
    ("grpc.so_reuseport", 0),
]

# After the last answer, clients are refused by name for this long, before connections close under them.
_LINGER_S = 0.5


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Serves a bundle over gRPC (dfcvae.v1.LatentEngine, health and reflection)."""

    bundle: Path
    """Bundle folder, as `python -m export.build_engines` writes it."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""

    port: int = 50051
    """TCP port; 0 picks a free one."""

    max_delay_ms: float = 0.0
    """How long a batch may wait for more requests while the engine is free, milliseconds."""

    max_queue: int = 4096
    """Images that may wait for each of encoder and decoder; requests beyond are refused at once."""

    threads: int | None = None
    """Compute threads; None takes every core that the process may use."""

    codec_threads: int = 2
    """Image files that are decoded or encoded at once."""

    grace_s: float = 30.0
    """How long accepted requests may go on after SIGTERM or SIGINT, seconds."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged, to stderr."""

    dry_run: bool = False
    """Print the resolved configuration as JSON and stop."""

    def __post_init__(self) -> None:
        checks = {
            "--port must be from 0 to 65535": (self.port, 0 <= self.port <= 65535),
            "--max-delay-ms must be 0 or more": (self.max_delay_ms, self.max_delay_ms >= 0),
            "--max-queue must be at least 1": (self.max_queue, self.max_queue >= 1),
            "--threads must be at least 1": (self.threads, self.threads is None or self.threads >= 1),
            "--codec-threads must be at least 1": (self.codec_threads, self.codec_threads >= 1),
            "--grace-s must be 0 or more": (self.grace_s, self.grace_s >= 0),
        }
        for rule, (value, holds) in checks.items():
            if not holds:
                raise StartupError(f"{rule}, not {value}")


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # grpc has no types
    """The standard health service, whose watchers don't hold up the end of the server."""

    def __init__(self) -> None:
        super().__init__()
        self._ending = asyncio.Event()

    async def set_all(self, status: int) -> None:
        """Sets the status of the server as a whole and of the service."""
        for name in ("", SERVICE_NAME):
            await self.set(name, status)

    def end_watches(self) -> None:
        """Ends every Watch stream, now and from now on."""
        self._ending.set()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Streams the status until the client or the server ends."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            ending.cancel()


async def serve(config: ServerConfig, bundle: Bundle, backend: Backend) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted.

    Prints one line, `serving dfcvae.v1.LatentEngine on HOST:PORT`, on stdout when it is ready for requests.

    Args:
        config: Where and how to serve.
        bundle: What to serve.
        backend: The bundle's graphs, opened.

    Raises:
        StartupError: When the address can't be used, or the graphs don't fit the manifest.
    """
    signalled = _signals()
    _check_address(config.host, config.port)
    status = health_pb2.HealthCheckResponse
    healths = Health()
    await healths.set_all(status.NOT_SERVING)
    engine = LatentEngine(bundle, backend, Settings(config.max_delay_ms / 1000, config.max_queue, config.codec_threads))
    calls = CallInterceptor()
    server = grpc.aio.server(interceptors=[calls], options=_OPTIONS)
    dfcvae_pb2_grpc.add_LatentEngineServicer_to_server(engine, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        port = server.add_insecure_port(f"{host}:{config.port}")
    except RuntimeError as error:
        raise StartupError(f"can't listen on {host}:{config.port}: {error}") from None
    try:
        await server.start()
        await engine.warm_up()
        await healths.set_all(status.SERVING)
        print(f"serving {SERVICE_NAME} on {host}:{port}", flush=True)
        await signalled.wait()
    finally:
        await healths.enter_graceful_shutdown()
        loop = asyncio.get_running_loop()
        end = loop.time() + config.grace_s
        await calls.drain(config.grace_s)
        await asyncio.sleep(_LINGER_S)
        healths.end_watches()
        await server.stop(max(_LINGER_S, end - loop.time()))
        await engine.close()


def _signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    return signalled


def _check_address(host: str, port: int) -> None:
    """Tries the address with a plain socket, whose errors say more than gRPC's."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StartupError(
            f"can't listen on {host}:{port} ({error.strerror}); choose another --host or --port"
        ) from None
