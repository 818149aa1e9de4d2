"""Faults: what happens to accepted requests when clients, messages, deadlines, signals or the backend go wrong.

Each scenario starts a server of its own, puts load on it whose every answer is checked, and makes trouble. Exit code 1
if something that was accepted is lost or wrong, or if anything hangs.
"""

from __future__ import annotations

from trainer.extras import require

if __name__ == "__main__":
    require("bench")  # before what needs it is imported

import asyncio
import json
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from script import ROOT, require_positive, run, write_json
from serving import http2
from serving.clients import Crowd, GivenUp, Tally, ask, ask_stream, connect
from serving.generator import Connection, Outcome
from serving.orders import Order, Orders
from serving.poisoned_server import MARK, SECRET
from serving.process import Server
from serving.requests import Case, ask_model, prepare, raw_batch, stub_of
from serving.usage import Usage

from engine.bundle import MANIFEST, Bundle, Manifest
from protos import dfcvae_pb2 as pb

Name = Literal["killed-clients", "half-sent", "deadline-storm", "sigterm", "sighup", "backend-raises", "slow-readers"]

PICTURES = 200
MAX_IMAGES = 64
GRACE_S = 30.0
HANG_S = 120.0  # what takes longer hangs
MOST_POISON = 2000
EDIT = "/dfcvae.v1.LatentEngine/Edit"
REFUSED_BY_NAME = ("shutting down", "failed to connect", "Connection refused")
# What grpc.aio makes of the server's status when it arrives while a stream is being written; unary calls don't have it.
OVERTAKEN_WRITE = "INTERNAL: Internal error from Core"


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """Which faults, under how much load."""

    bundle: Path
    """Bundle folder to serve."""
    scenarios: tuple[Name, ...] = get_args(Name)
    """Which, in which order."""
    clients: int = 16
    """Clients of the load, each with its own connection and one request after the other."""
    settle_s: float = 2.0
    """How long the load runs undisturbed before and after the trouble, seconds."""
    scale: float = 1.0
    """Factor on how much trouble is made."""
    json: Path | None = None
    """File to write all figures to."""


@dataclass
class Scene:
    """A server with load on it, and somebody who makes trouble."""

    server: Server
    bundle: Path  # what it serves
    crowd: Crowd
    folder: Path
    config: FaultsConfig  # how much load, and how much trouble
    facts: list[str] = field(default_factory=list)  # what to tell about the trouble
    checks: dict[str, bool] = field(default_factory=dict)  # what must hold, and whether it did

    @property
    def orders(self) -> Orders:
        """What is asked for."""
        return self.crowd.orders

    def many(self, number: int) -> int:
        """A number of troubles, scaled."""
        return max(1, round(number * self.config.scale))

    async def disturb(self, trouble: Callable[[], Awaitable[None]], *, untouched: bool = True) -> Tally:
        """Makes trouble in the middle of the load, which must end by itself; `untouched`: with every answer right."""
        over = asyncio.Event()
        running = asyncio.ensure_future(self.crowd.run(over.is_set))
        try:
            await asyncio.sleep(self.config.settle_s)
            try:
                await asyncio.wait_for(trouble(), HANG_S)
            except asyncio.TimeoutError:
                self.checks["the trouble ends"] = False
            await asyncio.sleep(self.config.settle_s)
        finally:
            over.set()
        done, _ = await asyncio.wait({running}, timeout=HANG_S)
        running.cancel()
        tally = self.crowd.tally
        self.checks["nothing hangs"] = bool(done) and "DEADLINE_EXCEEDED" not in tally.statuses
        self.checks["there was load"] = tally.answered.total() > 0
        if untouched:
            right = not (tally.statuses or tally.wrong or tally.lost)
            self.checks["every request of the load is answered, right"] = right
        return tally

    async def require_alive(self) -> None:
        """The server answers, and works on nothing that nobody waits for."""
        probe = replace(self.crowd, number=1, streams=0.0, tally=Tally())
        await probe.run(lambda: probe.tally.sent.total() >= 3)
        self.checks["it answers afterwards"] = probe.tally.answered.total() == 3
        with Usage(self.server.pid) as usage:
            await asyncio.sleep(1.0)
        self.checks["it is idle afterwards"] = usage.cores < 0.5

    async def end(self) -> tuple[int | None, float]:
        """SIGTERM; the server's exit code, and how long it took, seconds."""
        start = time.monotonic()
        self.server.signal(signal.SIGTERM)
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
        writer.write(http2.START + http2.opening(1, EDIT))
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
    scene.facts += [
        f"{count} x {reason}" for reason, count in (storm.reasons + scene.crowd.tally.reasons).most_common(4)
    ]
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
        if reason != OVERTAKEN_WRITE
        and not (reason.startswith("UNAVAILABLE") and any(text in reason for text in REFUSED_BY_NAME))
    ]
    scene.facts += [f"{count} x {reason}" for reason, count in tally.reasons.most_common(5)]
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
        scene.server.signal(signal.SIGHUP)

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
    await asyncio.sleep(scene.config.settle_s)
    poisoned = await _poison(scene)
    over.set()
    _, late = await asyncio.wait({running}, timeout=HANG_S)

    owners = {zlib.crc32(one.tobytes()): number for number, part in enumerate(rows) for one in orders.pictures[part]}
    failures = (scene.folder / "failures").read_text().splitlines()
    batches = [{owners[crc] for crc in json.loads(line) if crc in owners} for line in failures]
    expected = Counter(number for batch in batches for number in batch)
    reasons = poisoned.reasons + tally.reasons
    scene.facts.append(f"{len(batches)} batches failed")
    scene.facts += [f"{count} x {reason}" for reason, count in reasons.most_common(3)]
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
    images = raw_batch(poisoned)
    both = (
        Order("Encode", pb.EncodeRequest(images=images)),
        Order("Edit", pb.EditRequest(images=images, **scene.orders.moves(0))),
    )
    tally = Tally()
    async with connect(scene.server.target) as channel:
        for number in range(MOST_POISON):
            if number >= scene.many(100) and scene.crowd.tally.statuses:
                break
            order = both[number % 2]
            await tally.count(order.method, ask(stub_of(channel), scene.orders, order))
            await asyncio.sleep(0.02)
    return tally


async def slow_readers(scene: Scene) -> None:
    """Streams that send a lot and read nothing for a while; half of them never do."""
    pause, messages = max(2.0, 2 * scene.config.settle_s), scene.many(200)
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

    with Usage(scene.server.pid) as usage:
        await scene.disturb(trouble)
    scene.facts.append(f"slow streams of {messages} messages: {slow.describe()}")
    scene.facts.append(f"server's memory: {usage.rss_mib[0][1]:.0f} MiB before, {usage.peak_mib:.0f} at its peak")
    read_on = (scene.many(16) + 1) // 2
    scene.checks["slow readers get every answer, right and in order"] = slow.answered.total() == read_on
    scene.checks["none of their answers is wrong or lost"] = not slow.wrong and not slow.lost
    await scene.require_alive()


SCENARIOS: dict[Name, Callable[[Scene], Coroutine[Any, Any, None]]] = {
    "killed-clients": killed_clients,
    "half-sent": half_sent,
    "deadline-storm": deadline_storm,
    "sigterm": sigterm,
    "sighup": sighup,
    "backend-raises": backend_raises,
    "slow-readers": slow_readers,
}


def play(name: Name, config: FaultsConfig, orders: Orders) -> tuple[Scene, float]:
    """Runs one scenario with a server of its own; how long that took, seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder, bundle = Path(scratch), config.bundle.resolve()
        if name == "sighup":
            bundle = Path(shutil.copytree(bundle, folder / "bundle"))
        command: list[object] = ["-m", "engine"]
        if name == "backend-raises":
            command = [ROOT / "benchmarks" / "serving" / "poisoned_server.py", folder / "failures"]
        # Refusals for want of room are not the subject here.
        room = ("--max-queue", 65536, "--max-bytes-in-flight", 2**32)
        command += ["--bundle", bundle, *room, "--grace-s", GRACE_S]
        with Server(command) as server:
            scene = Scene(server, bundle, Crowd(server.target, orders, config.clients), folder, config)
            asyncio.run(SCENARIOS[name](scene))
        scene.checks["it ends with exit code 0"] = server.process.returncode == 0
        # Every trace in it is of the failure that was made on purpose.
        scene.checks["its log has no trace but the backend's"] = server.log.count("Traceback") == server.log.count(
            SECRET
        )
    scene.facts += [f"wrong: {text}" for text in scene.crowd.tally.wrong[:5]]
    return scene, time.monotonic() - start


def faults(config: FaultsConfig) -> bool:
    """Plays the scenarios and reports; whether everything held."""
    require_positive(config, "clients", "settle_s", "scale")
    orders = Orders(Bundle.load(config.bundle), PICTURES, MAX_IMAGES)
    results = []
    for name in config.scenarios:
        scene, seconds = play(name, config, orders)
        tally, passed = scene.crowd.tally, all(scene.checks.values())
        print(f"{'PASS' if passed else 'FAIL'}  {name} ({seconds:.0f} s)\n      load: {tally.describe()}")
        for fact in scene.facts:
            print(f"      {fact}")
        for what, holds in scene.checks.items():
            print(f"      {'pass' if holds else 'FAIL'}  {what}", flush=True)
        results.append(
            {
                "name": name,
                "seconds": seconds,
                "sent": tally.sent.total(),
                "answered": tally.answered.total(),
                "refused": tally.statuses,
                "facts": scene.facts,
                "checks": scene.checks,
                "passed": passed,
            }
        )
    failed = [str(result["name"]) for result in results if not result["passed"]]
    print(f"\nFAIL: {', '.join(failed)}" if failed else "\nPASS")
    write_json(config.json, {"config": asdict(config), "results": results})
    return not failed


main = partial(run, FaultsConfig, faults, __doc__)

if __name__ == "__main__":
    sys.exit(main())
