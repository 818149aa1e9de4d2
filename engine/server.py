"""The server process: models behind one port, with health and reflection, reloads and an orderly end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import grpc

from engine.access.admission import window_of
from engine.backends import Backend
from engine.bundle import Bundle
from engine.config import ServerConfig
from engine.models.repository import ModelRepository
from engine.process import address
from engine.process.memory import collect_rarely, give_freed_memory_back
from engine.process.signals import Signals, signal_events
from engine.process.threads import in_thread, let_others_finish
from engine.service import health, latent_engine, reflection
from engine.service.interceptor import PROBES, CallInterceptor
from engine.service.latent_engine import LatentEngine
from engine.service.open_inference import service as open_inference
from engine.service.open_inference.service import OpenInference
from engine.telemetry.metrics import Metrics
from engine.telemetry.tracing import Tracing
from engine.transport import Server, prove
from engine.transport.tls import server_credentials

logger = logging.getLogger(__name__)

# Calls are still answered for this long after health says NOT_SERVING: clients that watch it leave without a failure.
_LEAVING_S = 0.5
_UNACCEPTED_S = 2.0
# After the grace, a batch whose calls were cut off may end within this time.
_LAST_BATCH_S = 2.0
_LAST_SPANS_S = 2.0


class StuckError(RuntimeError):
    """Raise when the backend doesn't come back from a batch, so that only the end of the process ends its thread."""


async def serve(config: ServerConfig, opener: Callable[[Bundle], Backend]) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted; SIGHUP reads bundles and tokens again.

    Prints one line, `serving dfcvae.v1.LatentEngine on HOST:PORT`, on stdout when it is ready for requests. Another
    SIGTERM or SIGINT ends the grace at once. From its end on, all three signals are ignored: so should the process be
    near its own.

    Raises:
        StartupError: When something that the configuration names can't be used, or graphs don't fit their manifest.
        StuckError: When the grace is over, and the backend still computes.
    """
    with signal_events(config.grace_s) as signals:
        address.check(config.host, config.port)
        async with AsyncExitStack() as stack:
            if await _unless(signals.stop, _start(stack, config, opener, signals)):
                await signals.stop.wait()


async def _start(
    stack: AsyncExitStack, config: ServerConfig, opener: Callable[[Bundle], Backend], signals: Signals
) -> None:
    """Builds the server up to the line that says it serves; what is to be ended goes on the stack."""
    give_freed_memory_back()
    let_others_finish()
    await prove()
    metrics = Metrics()
    tracing = Tracing(config.traces) if config.traces else None
    if tracing:
        stack.push_async_callback(_send_last_spans, tracing, signals)
    if config.metrics_port is not None:
        stack.callback(metrics.serve(config.metrics_host, config.metrics_port))
    calls = CallInterceptor(metrics, config, tracing)
    credentials = None
    if config.tls_cert and config.tls_key:  # before bundles are proven, which takes longer
        credentials = server_credentials(config.tls_cert, config.tls_key, config.tls_client_ca)
    repository = ModelRepository(config, opener, metrics.watch, metrics.reloaded)
    stack.push_async_callback(_close, repository, signals)
    await repository.open()

    engine = LatentEngine(repository, config)
    served = ((latent_engine.SERVICE, engine), (open_inference.SERVICE, OpenInference(repository, engine)))
    healths = health.Health((*(service.full_name for service, _ in served), *reflection.NAMES))
    server = Server(
        _options(config),
        calls.admit,
        calls.incomplete,
        metrics.unknown,
        message_limit_s=config.max_message_s,
        stream_limit_s=config.max_stream_idle_s,
    )
    for service, servicer in served:
        calls.register(server, service, servicer)
    reflects = reflection.servicer_of((health.FILE, *(service.file for service, _ in served)))
    for name in reflection.NAMES:
        calls.register(server, reflection.SERVICE, reflects, name)
    # Health answers everyone and always: probes have no tokens, and ask most when the server is in trouble.
    healths.add_to_server(server)
    target = _listen(server, config, credentials)
    await stack.enter_async_context(_running(server, calls, repository, healths, signals, grace_s=config.grace_s))
    await repository.warm_up()
    collect_rarely()
    calls.admission.open()
    healths.set(serving=True)
    await stack.enter_async_context(_reloads(repository, calls, signals, config.reload_every_s))
    _announce(f"serving {latent_engine.SERVICE.full_name} on {target}")


def _announce(line: str) -> None:
    """Prints a line; a stdout that is full or has been closed is no reason not to serve."""
    try:
        print(line, flush=True)
    except (OSError, ValueError) as error:
        logger.warning("stdout can't be written (%s); %s", error, line)


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    """Channel arguments of gRPC core; those that are 0 keep its defaults, which are no limits."""
    waiting = min(config.max_calls_in_flight + PROBES, 2**31 - 1)
    limits = {
        "grpc.max_concurrent_streams": config.max_concurrent_streams,
        "grpc.keepalive_time_ms": config.keepalive_s * 1000,
        "grpc.max_connection_age_ms": config.max_connection_age_s * 1000,
    }
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # Otherwise a second server on the same port would quietly take half of the connections.
        ("grpc.so_reuseport", 0),
        # Otherwise core lets clients send megabytes of each call before anyone has asked for its message.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", window_of(config.max_bytes_in_flight)),
        # Core cancels calls that come while so many wait to be judged, which take memory, a first window each. With its
        # own limit it would cancel some that are let in here, or are told when to try again.
        ("grpc.server.max_pending_requests", waiting),
        ("grpc.server.max_pending_requests_hard_limit", waiting),
        ("grpc.http2.min_ping_interval_without_data_ms", int(config.min_ping_interval_s * 1000)),
        # Otherwise a connection without calls may ping every two hours only, whatever the interval says.
        ("grpc.keepalive_permit_without_calls", 1),
        *((name, int(value)) for name, value in limits.items() if value),
    ]


def _listen(server: Server, config: ServerConfig, credentials: grpc.ServerCredentials | None) -> str:
    """Takes the port, and gives the address that clients are to use."""
    port = server.listen(address.target_of(config.host, config.port), credentials)
    if config.insecure:
        logger.warning("no TLS (--insecure): whoever is on the way can read images, latents and tokens")
    elif not config.encrypted:
        logger.info("no TLS: only this machine can connect; for others give --tls-cert, --tls-key and --host")
    return address.target_of(config.host, port)


@asynccontextmanager
async def _running(
    server: Server,
    calls: CallInterceptor,
    repository: ModelRepository,
    healths: health.Health,
    signals: Signals,
    *,
    grace_s: float,
) -> AsyncIterator[None]:
    """Starts the server; at the end sends clients away, and waits for what was accepted."""
    try:
        await server.start()
        yield
    finally:
        logger.info("stopping: clients are sent away; calls being answered: %d", calls.admission.total.calls)
        healths.set(serving=False)
        await _unless(signals.force_stop, asyncio.sleep(min(_LEAVING_S, grace_s)))
        await server.go_away()
        healths.end_watches()
        repository.hurry()
        if not await _unless(signals.force_stop, calls.drain(signals.grace_left_s)):
            logger.warning("asked again to end: %d calls are cut off", calls.admission.total.calls)
        # What is still open was never accepted, for example a request that was sent by half.
        await server.stop(max(_LEAVING_S, min(_UNACCEPTED_S, signals.grace_left_s)))
        logger.info("stopped")


async def _send_last_spans(tracing: Tracing, signals: Signals) -> None:
    """Sends what is left, unless the collector takes too long for it, or another signal comes."""
    with suppress(asyncio.TimeoutError):
        await _unless(signals.force_stop, asyncio.wait_for(in_thread(tracing.close), _LAST_SPANS_S))


async def _close(repository: ModelRepository, signals: Signals) -> None:
    """Ends the models.

    Raises:
        StuckError: When the grace is over, and the backend still computes.
    """
    closing = asyncio.ensure_future(repository.close())
    await _unless(signals.force_stop, asyncio.wait({closing}, timeout=signals.grace_left_s))
    await asyncio.wait({closing}, timeout=_LAST_BATCH_S)
    if busy := repository.busy:
        message = f"the backend is stuck in a batch of {', '.join(busy)}"
        logger.error("%s; the process ends without it", message)
        raise StuckError(message)
    await closing


@asynccontextmanager
async def _reloads(
    repository: ModelRepository, calls: CallInterceptor, signals: Signals, every_s: float
) -> AsyncIterator[None]:
    """Looks for new bundles and tokens on SIGHUP, also one that came before, and for new bundles from time to time."""
    tasks: set[asyncio.Task[None]] = set()

    def start(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)  # asyncio logs what it has failed with, if it has

    async def on_reload() -> None:
        while True:
            await signals.reload.wait()
            signals.reload.clear()
            logger.info("SIGHUP: reading bundles and tokens again")
            calls.reload_tokens()
            start(repository.reload())

    start(on_reload())
    if every_s:
        start(repository.watch_for_changes(every_s))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Does the work, unless the event comes first; whether it was done."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if working.done():
        working.result()
        return True
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    return False
