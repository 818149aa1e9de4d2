"""Where a client connects, as whom, and what it does when that fails."""

import json
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import grpc
from grpc_health.v1 import health_pb2_grpc

from engine.client import arguments
from engine.client.errors import ClientError
from engine.client.target import is_local, places_of
from engine.client.values import Options, Priority
from protos import dfcvae_pb2_grpc

_NO_LIMIT = -1
_LARGEST = 2**31 - 1


class Connection:
    """What `Client` and `AsyncClient` have in common.

    Every call is safe to send twice: the same request always has the same answer. So a call is sent again, after 0.2 s
    and then twice as long every time (give or take a fifth, at most 2 s), when the server, the network or a proxy is
    UNAVAILABLE: for 3 s in all, unless it is to wait for a server that can't be reached. Streams are not sent again.

    Calls to several servers take turns between those that can be reached; where the target lists them, for example
    "ipv4:10.0.0.1:50051,10.0.0.2:50051", between those whose health says SERVING.

    Args:
        target: "HOST:PORT" of the server, or any other gRPC target: "unix:PATH", or several servers.
        timeout: Deadline of every call with all its retries, seconds; None for none. Streams have none of their own
            accord.
        model: Name of the model that calls are for; empty for the server's default.
        priority: Who goes first when requests wait: "normal", "background" or "interactive".
        retries: Times that a call is sent again while the server is UNAVAILABLE.
        retry_overload: Times that a call is sent again that the server refused because it was busy, each after the
            time that the server gave; 0 reports it at once.
        wait_for_ready: While the server can't be reached, wait for it until the deadline instead of giving up.
        tls: True to trust the authorities that gRPC knows, or the path of a PEM file with others.
        certificate: Paths of the client's own PEM certificate and of its key, where the server asks for them.
        token: Bearer token, where the server asks for one.
        allow_plaintext_token: Send the token without TLS to another machine, where anyone on the way can read it.

    Raises:
        ValueError, TypeError: When one of these can't be, or they don't fit together.
        OSError: When a PEM file can't be read.
    """

    _channels: ClassVar[ModuleType]  # grpc or grpc.aio: both open channels by the same functions.

    def __init__(
        self,
        target: str,
        timeout: float | None = 60.0,
        *,
        model: str = "",
        priority: Priority = "normal",
        retries: int = 4,
        retry_overload: int = 0,
        wait_for_ready: bool = False,
        tls: bool | str | os.PathLike[str] = False,
        certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        token: str | None = None,
        allow_plaintext_token: bool = False,
    ) -> None:
        if not arguments.text("target", target):
            raise ValueError("target must not be empty: give HOST:PORT of the server, for example localhost:50051")
        if certificate and not tls:
            raise ValueError("a client certificate needs TLS; give tls, or --tls or --tls-ca FILE, as well")
        if token is not None and not is_word(arguments.text("token", token)):
            raise ValueError("the token must be one word of printable ASCII")
        if token and not (tls or allow_plaintext_token or is_local(target)):
            raise ValueError(
                f"the token would travel to {target} unencrypted; use TLS, or allow it with allow_plaintext_token"
            )
        self.target = target
        self._defaults = arguments.options({"timeout": timeout, "model": model, "priority": priority})
        self._retries = arguments.whole("retries", retries, 0, _LARGEST)
        self._retry_overload = arguments.whole("retry_overload", retry_overload, 0, _LARGEST)
        self._closed = False
        self._wait_for_ready = wait_for_ready
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        channel_options = _channel_options(target)
        self._channel: Any = (
            self._channels.secure_channel(target, _credentials(tls, certificate), channel_options)
            if tls
            else self._channels.insecure_channel(target, channel_options)
        )
        # A stub is nothing but its methods by their names.
        engine = dfcvae_pb2_grpc.LatentEngineStub(self._channel)  # type: ignore[no-untyped-call]
        self._methods: dict[str, Any] = {**vars(engine), **vars(health_pb2_grpc.HealthStub(self._channel))}

    def _with_defaults(self, options: Options) -> Options:
        return {**self._defaults, **arguments.options(options)}

    def _method(self, name: str, options: Options) -> Callable[..., Any]:
        """A method of the contract, called as the options say; each call has a `timeout` of its own."""
        named = (("x-request-id", options["request_id"]),) if "request_id" in options else ()
        metadata = (*self._metadata, *named)
        return partial(self._methods[name], metadata=metadata, wait_for_ready=self._wait_for_ready)

    def _stream(self, options: Options) -> tuple[Callable[..., Any], Options]:
        """What opens a stream, and its options, as for a call but without its deadline."""
        merged = self._with_defaults({"timeout": None, **options})
        return partial(self._method("EditStream", merged), timeout=merged["timeout"]), merged

    @contextmanager
    def _answers(self, requests_of: Callable[..., Any], steps: Any, options: Options) -> Iterator[Any]:
        """The answers to the steps of a stream, which ends with the context; what `steps` raised comes out last."""
        method, merged = self._stream(options)
        failures: list[Exception] = []
        call = method(requests_of(steps, merged, failures))
        try:
            yield call
        except grpc.RpcError as error:
            raise self._error(error) from None
        finally:
            call.cancel()
        if failures:
            raise failures[0]

    def _error(self, error: Any) -> ClientError:
        """What a call of this connection failed with, from gRPC's error."""
        return ClientError.of_call(error, self.target, unasked=not self._closed)


def is_word(text: str) -> bool:
    """Whether it is one word of printable ASCII, and so can be a token."""
    return text.isascii() and text.isprintable() and len(text.split()) == 1


def _credentials(
    tls: bool | str | os.PathLike[str],
    certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None,
) -> grpc.ChannelCredentials:
    """What TLS needs; gRPC itself would only log what is wrong with a file, and then fail to connect."""
    roots = None if isinstance(tls, bool) else Path(tls).read_bytes()
    own, key = (Path(path).read_bytes() for path in certificate) if certificate else (None, None)
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not isinstance(tls, bool):
        try:
            trial.load_verify_locations(tls)
        except ssl.SSLError:
            raise ValueError(f"{tls} is no PEM file with certificates of authorities") from None
    if certificate:
        try:
            trial.load_cert_chain(*certificate, password="")
        except ssl.SSLError:
            raise ValueError(
                "{} and {} are no PEM certificate and its key, without a passphrase".format(*certificate)
            ) from None
    return grpc.ssl_channel_credentials(roots, key, own)


def _channel_options(target: str) -> list[tuple[str, Any]]:
    return [
        # The server's limits hold; gRPC's own, 4 MB for an answer, would cut them short.
        ("grpc.max_receive_message_length", _NO_LIMIT),
        ("grpc.max_send_message_length", _NO_LIMIT),
        ("grpc.service_config", json.dumps(_balancing(target))),
        # A proxy of the environment can't reach this machine's own addresses.
        ("grpc.enable_http_proxy", 0 if is_local(target) else 1),
        # How long a server that came back may go unnoticed, milliseconds.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # While calls are open, a machine that vanished without a word is noticed within 50 s, also by streams.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.ping_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _balancing(target: str) -> dict[str, Any]:
    """Between which servers calls take turns.

    Servers behind a name may be behind a gateway, too, which needn't know of health, or wants a token for it: there,
    only connections tell whether they can be used.
    """
    if len(places_of(target)) > 1:
        return {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
    return {} if is_local(target) else {"loadBalancingConfig": [{"round_robin": {}}]}
