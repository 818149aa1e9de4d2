"""What goes wrong around a server under load, and what must hold then: a function a scenario."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.bundle import MANIFEST, Manifest
from engine.client import AsyncClient, StreamEdit, messages
from serving import http2
from serving.clients import Crowd, GivenUp, Tally, ask, ask_stream, connect
from serving.generator import Connection, Outcome
from serving.orders import Order, Orders
from serving.poisoned_server import MARK, SECRET
from serving.process import Server
from serving.requests import Case, ask_model, prepare, stub_of
from serving.usage import Usage

Name = Literal[
    "killed-clients", "half-sent", "deadline-storm", "sigterm", "sighup", "backend-raises", "slow-readers", "restarts"
]

GRACE_S = 30.0
HANG_S = 120.0  # what takes longer hangs
ROOM = ("--max-queue", 65536, "--max-bytes-in-flight", 2**32)
"""Refusals for want of room are not the subject here."""
BALANCED = (
    (
        "grpc.service_config",
        json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}),
    ),
    # By default a channel may take two minutes to notice a server that came back.
    ("grpc.max_reconnect_backoff_ms", 1000),
)

_MOST_POISON = 2000
_EDIT = "/dfcvae.v1.LatentEngine/Edit"
_REFUSED_BY_NAME = ("shutting down", "failed to connect", "Connection refused")
# What grpc.aio makes of the server's status when it arrives while a stream is being written; unary calls don't have it.
_OVERTAKEN_WRITE = "INTERNAL: Internal error from Core"


@dataclass
class Scene:
    """A server with load on it, and somebody who makes trouble."""

    server: Server
    bundle: Path  # what it serves
    crowd: Crowd
    folder: Path
    settle_s: float  # how long the load runs undisturbed before and after the trouble, seconds
    scale: float  # factor on how much trouble is made
    facts: list[str] = field(default_factory=list)  # what to tell about the trouble
    checks: dict[str, bool] = field(default_factory=dict)  # what must hold, and whether it did

    @property
    def orders(self) -> Orders:
        """What is asked for."""
        return self.crowd.orders

    def many(self, number: int) -> int:
        """A number of troubles, scaled."""
        return max(1, round(number * self.scale))

    async def disturb(
        self, trouble: Callable[[], Awaitable[None]], *, untouched: bool = True, limit_s: float = HANG_S
    ) -> Tally:
        """Makes trouble in the middle of the load, which must end by itself; `untouched`: with every answer right."""
        over = asyncio.Event()
        running = asyncio.ensure_future(self.crowd.run(over.is_set))
        try:
            await asyncio.sleep(self.settle_s)
            try:
                await asyncio.wait_for(trouble(), limit_s)
            except asyncio.TimeoutError:
                self.checks["the trouble ends"] = False
            await asyncio.sleep(self.settle_s)
        finally:
            over.set()
        done, _ = await asyncio.wait({running}, timeout=HANG_S)
        running.cancel()
        tally = self.crowd.tally
        self.checks["nothing hangs"] = bool(done) and "DEADLINE_EXCEEDED" not in tally.statuses
        self.checks["there was load"] = tally.answered.total() > 0
        if untouched:
            self.checks["every request of the load is answered, right"] = tally.untouched
        return tally

    async def require_alive(self) -> None:
        """The server answers, and works on nothing that nobody waits for."""
        probe = replace(self.crowd, number=1, streams=0.0, tally=Tally())
        await probe.run(lambda: probe.tally.sent.total() >= 3)
        self.checks["it answers afterwards"] = probe.tally.answered.total() == 3
        with Usage(self.server.process.pid) as usage:
            await asyncio.sleep(1.0)
        self.checks["it is idle afterwards"] = usage.cores < 0.5

    async def end(self) -> tuple[int | None, float]:
        """SIGTERM; the server's exit code, and how long it took, seconds."""
        start = time.monotonic()
        self.server.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self.server.wait, HANG_S)
        return code, time.monotonic() - start


async def killed_clients(scene: Scene) -> None:
    """Clients vanish with requests under way, some in the middle of an upload: their sockets close without a word."""
    model = ask_model(scene.server.target)
    large = min(model.limits.max_images_per_request, 1024)
    rng = np.random.default_rng(0)
    under_way = 0

    def again(client: Connection) -> None:
        asyncio.get_running_loop().call_soon(client.request, time.perf_counter())

    async def trouble() -> None:
        nonlocal under_way
        for turn in range(scene.many(8)):
            images, in_flight = (min(64, large), 16) if turn % 2 else (large, 4)
            prepared = prepare(Case("edit", "raw", "unary", images, in_flight), model)
            client = await Connection.to(scene.server.target, prepared, Outcome(), again)
            for _ in range(in_flight):
                client.request(time.perf_counter())
            await asyncio.sleep(float(rng.uniform(0, 0.3)))
            under_way += client.under_way
            client.abort()

    await scene.disturb(trouble)
    scene.facts.append(f"{scene.many(8)} clients killed, {under_way} of their requests were under way")
    scene.checks["clients were killed in mid-request"] = under_way > 0
    await scene.require_alive()


async def half_sent(scene: Scene) -> None:
    """Messages that never become whole: cut off, reset, left hanging, ended early; and bytes that aren't HTTP/2.

    Some are still hanging when the server is told to stop.
    """
    host, _, port = scene.server.target.rpartition(":")
    declared = 100 * ask_model(scene.server.target).image_size ** 2 * 3
    message = (struct.pack(">BI", 0, declared) + bytes(declared // 2))[: http2.WINDOW_BYTES]
    parts = [message[at : at + http2.FRAME_BYTES] for at in range(0, len(message), http2.FRAME_BYTES)]
    counts: Counter[str] = Counter()
    hanging: list[asyncio.StreamWriter] = []

    async def begin(way: str) -> None:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(http2.START + http2.opening(1, _EDIT))
        for part in parts:
            last = way == "ended early" and part is parts[-1]
            writer.write(http2.frame(http2.DATA, http2.END_STREAM if last else 0, 1, part))
        await writer.drain()
        counts[way] += 1
        if way == "reset":
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif way == "closed":
            writer.close()
        else:
            hanging.append(writer)

    async def trouble() -> None:
        for _ in range(scene.many(40)):
            for way in ("closed", "reset", "ended early", "left hanging"):
                await begin(way)
        for number in range(scene.many(10)):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(np.random.default_rng(number).bytes(4096))
            counts["no HTTP/2"] += 1
            writer.close()

    await scene.disturb(trouble)
    scene.facts.append("half-sent messages: " + ", ".join(f"{count} {way}" for way, count in counts.items()))
    await scene.require_alive()
    code, seconds = await scene.end()
    scene.facts.append(f"with {len(hanging)} of them open, SIGTERM took {seconds:.1f} s")
    # gRPC's core waits 20 s for connections that don't answer its ping before it lets them go.
    scene.checks["nor do they keep it from ending before its grace is over"] = code == 0 and seconds < GRACE_S - 5
    for writer in hanging:
        writer.close()


async def deadline_storm(scene: Scene) -> None:
    """Floods of calls with deadlines of 1 to 300 ms, and of calls that are cancelled after as long."""
    storm, rng = Tally(), np.random.default_rng(0)

    async def trouble() -> None:
        async with connect(scene.server.target) as channel:
            for _ in range(scene.many(20)):
                calls = []
                for number in range(50):
                    order, patience = scene.orders.draw(rng), float(10 ** rng.uniform(-3, -0.5))
                    limits = {"timeout": patience} if number % 2 else {"cancel_after": patience}
                    asked = ask(stub_of(channel), scene.orders, order, **limits)
                    calls.append(storm.count(order.method, asked))
                await asyncio.gather(*calls)

    await scene.disturb(trouble)
    scene.facts.append(f"storm: {storm.describe()}")
    scene.facts += storm.common_reasons(4)
    given_up = {"DEADLINE_EXCEEDED", "CANCELLED"}
    scene.checks["the storm ends in answers, deadlines and cancellations only"] = set(storm.statuses) <= given_up
    scene.checks["none of its answers is wrong or lost"] = not storm.wrong and not storm.lost
    await scene.require_alive()


async def sigterm(scene: Scene) -> None:
    """SIGTERM under full load: what was accepted is answered, the rest refused by name."""
    scene.crowd.until_refused = True
    code: int | None = None

    async def trouble() -> None:
        nonlocal code
        code, _ = await scene.end()

    tally = await scene.disturb(trouble, untouched=False)
    unclear = [
        reason
        for reason in tally.reasons
        if reason != _OVERTAKEN_WRITE
        and not (reason.startswith("UNAVAILABLE") and any(text in reason for text in _REFUSED_BY_NAME))
    ]
    scene.facts += tally.common_reasons(5)
    scene.checks["every client is refused in the end"] = tally.statuses.total() + len(tally.wrong) == scene.crowd.number
    scene.checks["it ends with exit code 0"] = code == 0
    scene.checks["every request is answered right, or refused by name"] = not (unclear or tally.wrong or tally.lost)


async def sighup(scene: Scene) -> None:
    """SIGHUP under full load with a new bundle, several times, and once with a damaged one."""
    manifest, seen = scene.bundle / MANIFEST, list[str]()

    async def fingerprint() -> str:
        return (await asyncio.to_thread(ask_model, scene.server.target)).fingerprint

    def reload(text: str) -> None:
        renewed = scene.bundle / "manifest.new"
        renewed.write_text(text)
        renewed.replace(manifest)
        scene.server.process.send_signal(signal.SIGHUP)

    async def trouble() -> None:
        seen.append(await fingerprint())
        for number in range(scene.many(4)):
            known = Manifest.from_json(manifest.read_text())
            reload(replace(known, run={**known.run, "reload": number}).to_json())
            while (now := await fingerprint()) == seen[-1]:
                await asyncio.sleep(0.1)
            seen.append(now)
        reload(manifest.read_text().replace('"latent_dim"', '"latent_dam"'))
        while "is refused, the old one stays" not in scene.server.log:
            await asyncio.sleep(0.1)

    await scene.disturb(trouble)
    scene.facts.append(f"{len(set(seen)) - 1} reloads, and a damaged bundle")
    scene.checks["every new bundle was taken"] = len(set(seen)) == scene.many(4) + 1
    scene.checks["the damaged bundle was not"] = bool(seen) and await fingerprint() == seen[-1]
    await scene.require_alive()


async def backend_raises(scene: Scene) -> None:
    """The backend raises in the middle of a batch: only that batch's requests fail, with a fixed text."""
    orders, tally, over = scene.orders, scene.crowd.tally, asyncio.Event()
    rows = [slice(4 * number, 4 * number + 1 + number % 4) for number in range(16)]
    failed: Counter[int] = Counter()

    async def neighbour(number: int) -> None:
        order = (orders.edit if number % 2 else orders.encode)(rows[number])
        async with connect(scene.server.target) as channel:
            while not over.is_set():
                failed[number] += not await tally.count(order.method, ask(stub_of(channel), orders, order))

    running = asyncio.gather(*map(neighbour, range(len(rows))))
    await asyncio.sleep(scene.settle_s)
    poisoned = await _poison(scene)
    over.set()
    _, late = await asyncio.wait({running}, timeout=HANG_S)

    owners = {zlib.crc32(one.tobytes()): number for number, part in enumerate(rows) for one in orders.pictures[part]}
    failures = (scene.folder / "failures").read_text().splitlines()
    batches = [{owners[crc] for crc in json.loads(line) if crc in owners} for line in failures]
    expected = Counter(number for batch in batches for number in batch)
    reasons = poisoned.reasons + tally.reasons
    scene.facts.append(f"{len(batches)} batches failed")
    scene.facts += tally.common_reasons(3)
    scene.checks["nothing hangs"] = not late
    scene.checks["exactly the requests of those batches fail"] = +failed == expected and expected.total() > 0
    scene.checks["no marked image is answered"] = not poisoned.answered
    scene.checks["they get INTERNAL, with one fixed text"] = len(reasons) == 1 and set(tally.statuses) == {"INTERNAL"}
    scene.checks["the text doesn't give the reason away"] = not any(SECRET in reason for reason in reasons)
    scene.checks["all other answers are right"] = not tally.wrong and not tally.lost
    await scene.require_alive()


async def _poison(scene: Scene) -> Tally:
    """Sends marked images, one at a time, until one hits others that were in its batch; what came of them."""
    poisoned = scene.orders.pictures[:1].copy()
    poisoned.reshape(-1)[: len(MARK)] = MARK
    both = (
        Order("Encode", messages.encode_request(poisoned)),
        Order("Edit", messages.edit_request(StreamEdit(poisoned, *scene.orders.edits[0]))),
    )
    tally = Tally()
    async with connect(scene.server.target) as channel:
        for number in range(_MOST_POISON):
            if number >= scene.many(100) and scene.crowd.tally.statuses:
                break
            order = both[number % 2]
            await tally.count(order.method, ask(stub_of(channel), scene.orders, order))
            await asyncio.sleep(0.02)
    return tally


async def slow_readers(scene: Scene) -> None:
    """Streams that send a lot and read nothing for a while; half of them never do."""
    pause, messages = max(2.0, 2 * scene.settle_s), scene.many(200)
    slow = Tally()

    async def read(number: int) -> int:
        rng, gives_up = np.random.default_rng([9, number]), number % 2 == 1
        async with connect(scene.server.target) as channel:
            work = ask_stream(stub_of(channel), scene.orders, rng, messages, pause=HANG_S if gives_up else pause)
            try:
                return await asyncio.wait_for(work, pause if gives_up else HANG_S)
            except asyncio.TimeoutError:
                raise GivenUp from None

    async def trouble() -> None:
        await asyncio.gather(*(slow.count("EditStream", read(number)) for number in range(scene.many(16))))

    with Usage(scene.server.process.pid) as usage:
        await scene.disturb(trouble)
    scene.facts.append(f"slow streams of {messages} messages: {slow.describe()}")
    scene.facts.append(f"server's memory: {usage.rss_mib[0][1]:.0f} MiB before, {usage.peak_mib:.0f} at its peak")
    read_on = (scene.many(16) + 1) // 2
    scene.checks["slow readers get every answer, right and in order"] = slow.answered.total() == read_on
    scene.checks["none of their answers is wrong or lost"] = not slow.wrong and not slow.lost
    await scene.require_alive()


async def restarts(scene: Scene) -> None:
    """Two servers are ended in turn by SIGTERM and started again, at addresses that stay: no call fails.

    The load comes from plain gRPC channels with round robin and health checking, and without retries; this project's
    clients ask beside it.
    """
    number, own, over, codes = scene.many(10), Tally(), asyncio.Event(), list[int | None]()
    with ExitStack() as stack:

        def start(port: int = 0) -> Server:
            return stack.enter_context(Server(["-m", "engine", "--bundle", scene.bundle, *ROOM], port))

        started = [await asyncio.to_thread(start) for _ in range(2)]
        scene.crowd.target = "ipv4:" + ",".join(server.target for server in started)
        scene.crowd.options = BALANCED

        async def own_client(seed: int) -> None:
            rng = np.random.default_rng([8, seed])
            async with AsyncClient(scene.crowd.target, timeout=HANG_S) as client:
                while not over.is_set():
                    await own.count("Edit", ask_own(client, scene.orders, rng))

        async def trouble() -> None:
            running = asyncio.gather(*map(own_client, range(scene.crowd.number)))
            for turn in range(number):
                server = started[turn]
                server.process.send_signal(signal.SIGTERM)
                codes.append(await asyncio.to_thread(server.wait, HANG_S))
                started.append(await asyncio.to_thread(start, int(server.target.rpartition(":")[2])))
                await asyncio.sleep(scene.settle_s)
            over.set()
            await running

        tally = await scene.disturb(trouble, limit_s=number * HANG_S)
        log = "".join(server.log for server in started)
    for name, of in (("plain", tally), ("this project's", own)):
        scene.facts.append(f"{name} clients: {of.describe()}; longest wait {of.calls.percentiles()['max']:,.0f} ms")
        scene.facts += of.common_reasons(3)
    scene.checks["every call of this project's clients is answered, right"] = own.untouched
    scene.checks["every server ends with exit code 0"] = codes == [0] * number
    scene.checks["no log has a trace"] = "Traceback" not in log


async def ask_own(client: AsyncClient, orders: Orders, rng: np.random.Generator) -> int:
    """Has this project's client edit a picture, and checks the answer; how many images that has."""
    row, edit = int(rng.integers(len(orders.pictures))), int(rng.integers(len(orders.edits)))
    images = await client.edit(orders.pictures[row : row + 1], *orders.edits[edit])
    orders.check_images(images, orders.edited[edit][row : row + 1])
    return len(images)


SCENARIOS: dict[Name, Callable[[Scene], Coroutine[Any, Any, None]]] = {
    "killed-clients": killed_clients,
    "half-sent": half_sent,
    "deadline-storm": deadline_storm,
    "sigterm": sigterm,
    "sighup": sighup,
    "backend-raises": backend_raises,
    "slow-readers": slow_readers,
    "restarts": restarts,
}
