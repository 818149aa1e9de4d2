"""The server's configuration: one dataclass, read from flags, environment and a file."""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import tyro
from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError

from engine.backends.base import DEVICE_RULE, is_device
from engine.command_line import REAL_PATHS, last_given, program
from engine.errors import StartupError
from engine.process.address import is_local
from engine.validation import first_fault

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "DFCVAE_"
"""Prefix of the environment variables that set the fields of `ServerConfig`, for example DFCVAE_MAX_QUEUE."""

_NONE = ("None", "none")
_NAMED_BUNDLE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)

# gRPC's core counts in 32 bits, and time in milliseconds; so do the numbers that GetModel gives.
_INT32 = 2**31 - 1
_UINT32 = 2**32 - 1
_WEEK_S = 7 * 86_400


def _rule(rule: str, holds: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """Checks a value, and says what it must be; None is for its type to allow."""

    def check(value: Any) -> Any:
        if value is None or holds(value):
            return value
        raise ValueError(f"{rule}, not {value!r}")

    return check


def _between(low: float, high: float, *, or_zero: bool = False) -> AfterValidator:
    rule = f"must be {'0, or ' if or_zero else ''}from {low} to {high}"
    return AfterValidator(_rule(rule, lambda value: low <= value <= high or (or_zero and value == 0)))


def _is_true_or_false(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false", "1", "0"))


def _is_collector(value: str) -> bool:
    with suppress(ValueError):  # of brackets that are no IPv6 address
        url = urlsplit(value)
        return value == "console" or (url.scheme in ("http", "https") and bool(url.hostname))
    return False


_DEVICE = AfterValidator(_rule(DEVICE_RULE, is_device))
_COLLECTOR = AfterValidator(_rule('must be "console" or the http(s) URL of a collector', _is_collector))
_TRUE_OR_FALSE = BeforeValidator(_rule("must be true or false", _is_true_or_false))


def _named_bundles(value: Any) -> Any:
    """Bundles as a file or the environment has them: text, a list, or a table of names and paths."""
    if isinstance(value, dict):
        value = [f"{name}={path}" for name, path in value.items()]
    return tuple(value.split(",")) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Serves bundles over gRPC (dfcvae.v1.LatentEngine, health and reflection).

    Every flag can also be set in the environment (DFCVAE_MAX_QUEUE=100) and in a file (--config FILE, TOML:
    max_queue = 100); flags go before the environment, the environment before the file.
    """

    bundle: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], BeforeValidator(_named_bundles)] = ()
    """Bundle folder, as `python -m export.build_engines` writes it; several as NAME=PATH each, the default first.
    In the environment DFCVAE_BUNDLE=a=PATH,b=PATH, in the file a string, a list of such, or a table [bundle]."""

    config: Path | None = None
    """TOML file with values for the other fields."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface. Without TLS only loopback, unless --insecure. Or unix:PATH, a
    Unix socket, for those whom the umask lets write to it: as a rule, this user."""

    port: Annotated[int, _between(0, 65535)] = 50051
    """TCP port; 0 picks a free one. A Unix socket has none."""

    insecure: Annotated[bool, _TRUE_OR_FALSE] = False
    """Serve other machines without TLS: only where something else encrypts, for example a service mesh."""

    tls_cert: Path | None = None
    """The server's certificate chain, PEM."""

    tls_key: Path | None = None
    """The key of that certificate, PEM."""

    tls_client_ca: Path | None = None
    """Certificates, PEM; clients must then show one that these have signed (mutual TLS)."""

    tokens: Path | None = None
    """File of bearer tokens, a line `NAME TOKEN` each, tokens of 16 characters or more; calls must then carry one. Read
    again on SIGHUP; streams whose token is gone then end."""

    max_images_per_second: Annotated[float, _between(0.001, 10**9, or_zero=True)] = 0.0
    """Images and latents a second that each client may ask for, sent, sampled or interpolated; 0: no limit."""

    burst: Annotated[int, _between(0, 10**9)] = 0
    """Images and latents that a client may ask for at once where that is limited; 0: those of one second. A larger
    request passes when nothing is used up, and is paid off afterwards."""

    max_concurrent_streams: Annotated[int, _between(0, _INT32)] = 1024
    """Calls that one connection may have open at once; 0: no limit."""

    max_calls_in_flight: Annotated[int, _between(1, _INT32)] = 4096
    """Calls of all clients together that are answered at once; those beyond are refused at once, and about as many
    more may wait to be judged. Of calls, streams, bytes and queued images the last eighth is for clients that have less
    than an eighth."""

    max_streams_in_flight: Annotated[int, _between(1, _INT32)] = 256
    """Of these, EditStreams; each may have one message on its way that --max-bytes-in-flight doesn't count yet."""

    max_stream_idle_s: Annotated[float, _between(0.001, _WEEK_S)] = 600.0
    """How long an EditStream may be silent, seconds; then it ends with ABORTED, and what it remembers is dropped. One
    whose answers nobody takes for so long is cancelled."""

    max_bytes_in_flight: Annotated[int, _between(1024, 2**48)] = 512 * 2**20
    """Bytes of requests, answers and sources of streams that are held at once; requests beyond are refused at once. A
    message that is on its way counts as the largest until it is there; where that doesn't fit, it waits."""

    max_message_bytes: Annotated[int, _between(1024, _INT32)] = 16 * 2**20
    """Largest message in either direction, bytes."""

    max_message_s: Annotated[float, _between(0.1, _WEEK_S)] = 60.0
    """How long the message of a call may take to come, and its answer to be taken, seconds."""

    max_images_per_request: Annotated[int, _between(1, _UINT32)] = 1024
    """Most images or latents in one request; fewer where a message couldn't hold the answer."""

    max_pixels_per_file: Annotated[int, _between(1, _UINT32)] = 24_000_000
    """Largest encoded image, pixels; larger ones are refused before they are decoded. A phone's photo has 12 or 24
    million, a face for a model far fewer."""

    max_pixels_in_flight: Annotated[int, _between(1, 2**48)] = 24_000_000
    """Pixels of encoded images that are decoded at one time, beyond one image; each takes up to 20 bytes meanwhile."""

    keepalive_s: Annotated[float, _between(0.001, _INT32 // 1000, or_zero=True)] = 60.0
    """How often the server asks a silent connection whether it is still there, seconds; 0: gRPC's default, 2 h."""

    min_ping_interval_s: Annotated[float, _between(0, _INT32 // 1000)] = 10.0
    """How often clients may ping; those that do so more often are cut off, seconds."""

    max_connection_age_s: Annotated[float, _between(0.001, _INT32 // 1000, or_zero=True)] = 0.0
    """Connections are asked to end after this time, for example to balance load anew, seconds; 0: never."""

    max_batch: Annotated[int | None, _between(1, _UINT32)] = None
    """Largest batch, images, at most what the bundle was built for; None takes that. Small ones answer the first of
    those who wait sooner, large ones compute more images a second."""

    max_delay_ms: Annotated[float, _between(0, 3_600_000)] = 0.0
    """How long a batch may wait for more requests while the engine is free, milliseconds."""

    max_queue: Annotated[int, _between(1, _UINT32)] = 4096
    """Images that may wait for each of encode, decode and edit, of each model; requests beyond are refused at once."""

    device: Annotated[str | None, _DEVICE] = None
    """Where engines compute, of the kind that the bundle was built for: cpu, cuda, or one of several GPUs, such as
    cuda:1; None: the first of that kind."""

    threads: Annotated[int | None, _between(1, 4096)] = None
    """Compute threads; None takes every core that the process may use, or as many as its container's quota is worth."""

    codec_threads: Annotated[int, _between(1, 4096)] = 2
    """Image files of each model that are decoded or encoded at once; large samples and walks use the same threads."""

    grace_s: Annotated[float, _between(0, _WEEK_S)] = 30.0
    """How long accepted requests may go on after SIGTERM or SIGINT, seconds; a second signal ends it at once."""

    reload_every_s: Annotated[float, _between(0.001, _WEEK_S, or_zero=True)] = 0.0
    """How often the bundle folders are looked at for a new bundle, seconds; 0: only on SIGHUP."""

    metrics_host: str = "127.0.0.1"
    """Address of the metrics."""

    metrics_port: Annotated[int | None, _between(0, 65535)] = None
    """TCP port of the metrics for Prometheus (HTTP, /metrics); 0 picks a free one, None: no metrics."""

    traces: Annotated[str | None, _COLLECTOR] = None
    """Where OpenTelemetry spans go: "console", or the URL of a collector (OTLP over HTTP). Needs dfc-vae[traces]."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged, to stderr."""

    log_format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line."""

    dry_run: Annotated[bool, _TRUE_OR_FALSE] = False
    """Print the resolved configuration as JSON and stop."""

    @property
    def bundles(self) -> dict[str, Path]:
        """The bundle folders by name, the default first; one without a name is called "default".

        Raises:
            StartupError: When there is none, or two have the same name.
        """
        if not any(self.bundle):
            raise StartupError("--bundle is missing: give the folder that python -m export.build_engines wrote")
        named: dict[str, Path] = {}
        for entry in self.bundle:
            match = _NAMED_BUNDLE.fullmatch(entry)
            name, path = match.groups() if match else ("default", entry)
            if name in named:
                raise StartupError(f"--bundle names {name!r} twice; give each its own: --bundle NAME=PATH")
            named[name] = Path(path)
        return named

    @property
    def encrypted(self) -> bool:
        """Whether connections are TLS."""
        return self.tls_cert is not None

    def check(self) -> None:
        """Checks what fields say together; `load_config` checks each by itself.

        Raises:
            StartupError: With a sentence that names the flags.
        """
        _ = self.bundles
        if (self.tls_cert is None) != (self.tls_key is None):
            raise StartupError("--tls-cert and --tls-key belong together; give both or none")
        if self.tls_client_ca and not self.encrypted:
            raise StartupError("--tls-client-ca needs TLS; give --tls-cert and --tls-key too")
        if self.insecure and self.encrypted:
            raise StartupError("--insecure is for serving without TLS; leave it out, or the --tls flags")
        if self.max_bytes_in_flight < self.max_message_bytes:
            raise StartupError(
                f"--max-bytes-in-flight {self.max_bytes_in_flight} would refuse messages that --max-message-bytes "
                f"{self.max_message_bytes} allows; raise the one or lower the other"
            )
        if self.burst and not self.max_images_per_second:
            raise StartupError("--burst belongs to a limit; give --max-images-per-second too")
        if not (self.encrypted or self.insecure or is_local(self.host)):
            raise StartupError(
                f"--host {self.host} without TLS would send images and tokens over the network in the clear; give "
                "--tls-cert and --tls-key, or --insecure where something else encrypts"
            )

    def to_json(self) -> str:
        """The resolved configuration, without secrets."""
        values = asdict(self)
        if self.traces:
            values["traces"] = re.sub(r"//[^/]*@", "//***@", self.traces)
        return json.dumps(values, indent=2, default=str)


_SERVER_CONFIG = TypeAdapter(ServerConfig)


def load_config(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> ServerConfig:
    """Reads the configuration: flags before environment before file before defaults.

    Environment and file are read here, as pydantic-settings would not say which of them a wrong value comes from.

    Raises:
        StartupError: When a key is unknown or a value can't be, with its source; or when they don't fit together.
    """
    from_environment = _read_environment(os.environ if environment is None else environment)
    file = last_given(arguments, "--config") or from_environment.get("config")
    from_file = _read_file(Path(file)) if file else {}
    default = _validated(
        {**from_file, **from_environment},
        lambda name: PREFIX + name.upper() if name in from_environment else f"{file}: {name}",
    )
    with REAL_PATHS:
        config = tyro.cli(
            ServerConfig,
            prog=program("engine", "dfcvae-serve"),
            args=arguments,
            default=replace(default, bundle=()),  # the flag would be appended to it
        )
    config = _validated(vars(config) | {"bundle": config.bundle or default.bundle}, _flag)
    config.check()
    return config


def _validated(values: Mapping[str, Any], source_of: Callable[[str], str]) -> ServerConfig:
    for name, value in values.items():
        if value == "":  # a path of it would be the current folder
            raise StartupError(f'{source_of(name)} is empty, ""; is a variable not set?')
    try:
        return _SERVER_CONFIG.validate_python(values)
    except ValidationError as error:
        name, said = first_fault(error)
        raise StartupError(f"{source_of(name)} {said}") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise StartupError(f"--config {path} can't be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"--config {path} is not TOML: {error}") from None
    names = {field.name for field in fields(ServerConfig)} - {"config", "dry_run"}
    for key, value in values.items():
        if key not in names:
            raise StartupError(f"{path}: unknown key {key!r}; the keys are: {', '.join(sorted(names))}")
        if r"\u0000" in json.dumps(value, default=str):  # of which the operating system would only raise a ValueError
            raise StartupError(f"{path}: {key} must have no NUL character, not {value!r}")
        if isinstance(value, bool) and not isinstance(getattr(ServerConfig, key), bool):  # pydantic would take a 1
            raise StartupError(f"{path}: {key} must not be true or false")
    return {key: None if value in _NONE else value for key, value in values.items()}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    names = {PREFIX + field.name.upper(): field.name for field in fields(ServerConfig)}
    result = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        if variable.startswith(f"{PREFIX}SERVICE_") or text.startswith("tcp://"):
            raise StartupError(
                f"the environment has {variable}={text}, as Kubernetes sets it for a service called dfcvae; "
                "set enableServiceLinks: false in the pod's spec"
            )
        if variable not in names:
            raise StartupError(f"unknown environment variable {variable}; known are: {', '.join(sorted(names))}")
        result[names[variable]] = None if text in _NONE else text
    return result


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
