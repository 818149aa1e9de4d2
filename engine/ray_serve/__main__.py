"""`python -m engine.ray_serve --bundle BUNDLE`: the engine on a Ray cluster."""

import importlib
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.bundle import Bundle
from engine.command_line import read_flags
from engine.config import ServerConfig, load_config
from engine.errors import StartupError
from engine.ray_serve.ingress import FUNCTIONS
from engine.ray_serve.replica import Replica


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Serves a bundle on a Ray cluster, with Ray Serve's gRPC ingress on every node that has a replica.

    Example: python -m engine.ray_serve --bundle bundle --address auto --cores 4 --max-replicas 8
    """

    bundle: str
    """Bundle folder; every node must have it under this name."""

    address: str | None = None
    """Address of the cluster, or "auto" on one of its nodes; the replicas then stay after this command. None: a cluster
    on this machine, until Ctrl-C."""

    name: str = "dfcvae"
    """Name of the application."""

    port: int = 50051
    """TCP port of the ingress, on every interface, without TLS. Ray Serve can't change it while it runs."""

    cores: int = 2
    """Cores of a replica, and its compute threads."""

    gpus: float = 0
    """GPUs of a replica; the bundle must be built for cuda."""

    min_replicas: int = 1
    """Fewest replicas."""

    max_replicas: int = 1
    """Most replicas."""

    max_replicas_per_node: int | None = None
    """Most replicas on one node, such as 1 so that no node's end takes them all; None: as many as it has room for."""

    waiting: float = 32
    """Requests that each replica has under way, as a target: beyond it more replicas are started, below it some end."""

    config: Path | None = None
    """TOML file with other settings of the server, see `python -m engine --help`: of models, batches and queues."""

    def server(self) -> ServerConfig:
        """The configuration of a replica.

        Raises:
            StartupError: When something can't be.
        """
        if self.cores < 1 or not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise StartupError(
                f"--cores {self.cores}, --min-replicas {self.min_replicas}, --max-replicas {self.max_replicas}: give "
                "1 core or more, and at least as many replicas at most as at least"
            )
        if self.max_replicas_per_node is not None and not 1 <= self.max_replicas_per_node <= 100:  # Ray's own bound
            raise StartupError(f"--max-replicas-per-node must be 1 to 100, not {self.max_replicas_per_node}")
        if self.waiting < 1:
            raise StartupError(f"--waiting must be 1 or more, not {self.waiting:g}")
        file = [f"--config={self.config}"] if self.config else []
        server = load_config([f"--bundle={self.bundle}", f"--threads={self.cores}", *file], {})
        # Replicas run in whatever folder their node's Ray was started in.
        return replace(server, bundle=tuple(f"{name}={path.absolute()}" for name, path in server.bundles.items()))


def application(config: ClusterConfig) -> Any:
    """The Ray Serve application.

    Raises:
        StartupError: When a setting can't be, or this node's bundle, of whose faults Ray would tell in its logs only.
    """
    server = config.server()
    for path in server.bundles.values():
        Bundle.load(path)
    deployment = _imported("ray.serve").deployment(
        Replica,
        name="engine",
        ray_actor_options={"num_cpus": config.cores, "num_gpus": config.gpus},
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.waiting,
        },
        max_replicas_per_node=config.max_replicas_per_node,
        # Batches are made of what is under way, and the next ones while they are computed. Beyond it, Ray's ingress
        # holds requests, and refuses them with RESOURCE_EXHAUSTED where it holds too many.
        max_ongoing_requests=int(8 * config.waiting),
        max_queued_requests=server.max_queue,
        graceful_shutdown_timeout_s=server.grace_s,
    )
    return deployment.bind(server)


def main() -> int:
    """Deploys; 0 when it serves, or did until it was asked to end, 2 for bad input."""
    config = read_flags(ClusterConfig, "python -m engine.ray_serve")
    try:
        app, serve = application(config), _imported("ray.serve")
        # Without an address Ray would look for the last cluster of this machine, also for one that has ended.
        _imported("ray").init(
            config.address or "local", include_dashboard=None if config.address else False, log_to_driver=False
        )
        serve.start(grpc_options={"port": config.port, "grpc_servicer_functions": [*FUNCTIONS]})
        serve.run(app, name=config.name)
    except StartupError as error:
        return _refused(str(error))
    except (ConnectionError, RuntimeError) as error:
        return _refused(str(error).strip().splitlines()[-1])  # the traces of Ray's own processes come before
    print(f"serving dfcvae.v1.LatentEngine on port {config.port} of every node with a replica", flush=True)
    if config.address is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own prints a stack and leaves
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        serve.shutdown()
    return 0


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 2


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise StartupError('Ray is missing; install it with: pip install "dfc-vae[ray]"') from None


if __name__ == "__main__":
    sys.exit(main())
