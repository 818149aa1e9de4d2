"""Rolling restarts: two servers, ended in turn by SIGTERM under full load and started again; no call may fail.

Half of the clients are this project's, half are plain gRPC channels with round robin and health checking, and without
retries. Each asks for one thing after the other, and every answer is checked. Exit code 1 if a call failed, an answer
was wrong, or a server didn't end well.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from script import machine, require_positive, run, show_checks, summary, write_json
from serving.clients import Crowd, Tally
from serving.orders import Orders
from serving.process import Server

from engine.bundle import Bundle
from engine.client import AsyncClient

PICTURES = 200
MAX_IMAGES = 64
MAX_QUEUE = 65536
WAIT_S = 120.0  # what takes longer hangs
BALANCED = (
    (
        "grpc.service_config",
        json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}),
    ),
    # By default a channel may take two minutes to notice a server that came back.
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True, kw_only=True)
class RestartsConfig:
    """How many restarts, under how much load."""

    bundle: Path
    """Bundle folder to serve."""
    restarts: int = 10
    """SIGTERMs, to one server after the other."""
    clients: int = 16
    """Clients of either kind, each with its own connections and one request after the other."""
    settle_s: float = 2.0
    """How long both servers run before each SIGTERM, seconds."""
    json: Path | None = None
    """File to write all figures to."""


class Servers:
    """Two servers of one bundle, at addresses that stay; `stack` stops what still runs at its end."""

    def __init__(self, bundle: Path, stack: ExitStack) -> None:
        self._bundle, self._stack = bundle, stack
        self._started: list[Server] = []
        self._running = [self._start(), self._start()]
        self.target = "ipv4:" + ",".join(server.target for server in self._running)
        self.codes: list[int | None] = []  # exit codes so far
        self.end_s: list[float] = []  # how long each end took, seconds

    def restart(self, number: int) -> None:
        """SIGTERM to one; when it has ended, another takes its place."""
        server, start = self._running[number], time.monotonic()
        server.signal(signal.SIGTERM)
        self.codes.append(server.wait(WAIT_S))
        self.end_s.append(time.monotonic() - start)
        self._running[number] = self._start(int(server.target.rpartition(":")[2]))

    def _start(self, port: int = 0) -> Server:
        command = ["-m", "engine", "--bundle", self._bundle, "--max-queue", MAX_QUEUE]
        self._started.append(self._stack.enter_context(Server(command, port)))
        return self._started[-1]

    @property
    def logs(self) -> str:
        """What all of them said."""
        return "".join(server.log for server in self._started)


async def own_clients(target: str, orders: Orders, number: int, tally: Tally, over: Callable[[], bool]) -> None:
    """This project's clients: they edit pictures until it is over."""

    async def one(seed: int) -> None:
        rng = np.random.default_rng([8, seed])
        async with AsyncClient(target, timeout=WAIT_S) as client:
            while not over():
                count = int(rng.integers(1, MAX_IMAGES + 1))
                start = int(rng.integers(PICTURES - count + 1))
                edit = int(rng.integers(len(orders.edits)))
                await tally.count("Edit", ask(client, slice(start, start + count), edit))

    async def ask(client: AsyncClient, rows: slice, edit: int) -> int:
        moves, keep = orders.edits[edit]
        images = await client.edit(orders.pictures[rows], moves, keep)
        expected = orders.edit(rows, edit).images
        assert expected is not None
        orders.check_images(images, expected)
        return len(images)

    await asyncio.gather(*map(one, range(number)))


async def restart_under_load(config: RestartsConfig, servers: Servers, orders: Orders) -> tuple[Tally, Tally]:
    """What came of the calls of either kind of client, this project's and plain ones."""
    over, own = asyncio.Event(), Tally()
    plain = Crowd(servers.target, orders, config.clients, options=BALANCED)
    load = asyncio.gather(plain.run(over.is_set), own_clients(servers.target, orders, config.clients, own, over.is_set))
    try:
        for number in range(config.restarts):
            await asyncio.sleep(config.settle_s)
            await asyncio.to_thread(servers.restart, number % 2)
        await asyncio.sleep(config.settle_s)
    finally:
        over.set()
        await asyncio.wait_for(load, WAIT_S)
    return own, plain.tally


def restarts(config: RestartsConfig) -> bool:
    """Restarts them and reports; whether everything held."""
    require_positive(config, "restarts", "clients", "settle_s")
    orders = Orders(Bundle.load(config.bundle), PICTURES, MAX_IMAGES)
    with ExitStack() as stack:
        servers = Servers(config.bundle.resolve(), stack)
        tallies = asyncio.run(restart_under_load(config, servers, orders))
    checks = {
        "every server ends with exit code 0": servers.codes == [0] * config.restarts,
        "no log has a trace": "Traceback" not in servers.logs,
    }
    here = machine()
    print(f"{summary(here)}\n\n{config.restarts} SIGTERMs; a server took {max(servers.end_s):.1f} s at most to end")
    for name, tally in zip(("this project's", "plain"), tallies, strict=True):
        print(f"{name} clients: {tally.describe()}; longest wait {tally.calls.percentiles()['max']:,.0f} ms")
        for text, count in tally.reasons.most_common(5):
            print(f"  {count} x {text}")
        failed = tally.statuses.total() + len(tally.wrong) + tally.lost
        checks[f"every call of {name} clients is answered, right"] = tally.answered.total() > 0 and not failed
    passed = show_checks(checks, servers.logs)
    calls = {
        name: {"sent": tally.sent.total(), "answered": tally.answered.total(), "refused": tally.statuses}
        for name, tally in zip(("own", "plain"), tallies, strict=True)
    }
    write_json(
        config.json,
        {"machine": here, "config": asdict(config), "calls": calls, "end_s": servers.end_s, "checks": checks},
    )
    return passed


main = partial(run, RestartsConfig, restarts, __doc__)

if __name__ == "__main__":
    sys.exit(main())
