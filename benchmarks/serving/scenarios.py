"""What goes wrong around a server under load, and what must hold then: a function a scenario."""

import asyncio
import json
import re
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
from typing import Any

import numpy as np

from engine.bundle import MANIFEST, Manifest
from engine.client import AsyncClient, ClientError, StreamEdit, messages
from serving import http2
from serving.clients import Load, Stats, ask, ask_own, ask_stream, connect
from serving.generator import Connection, Outcome
from serving.poisoned_server import MARK, SECRET
from serving.process import Server
from serving.requests import SERVICE, TIMEOUT_S, Case, ask_model, prepare, stub_of
from serving.usage import Usage
from serving.workload import Request

GRACE_S = 30.0
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
# The last is what grpc.aio makes of the server's status when it arrives while a stream is being written.
_REFUSED_BY_NAME = re.compile(
    "UNAVAILABLE.*(shutting down|failed to connect|Connection refused)|INTERNAL: Internal error from Core$", re.DOTALL
)


@dataclass
class FaultTest:
    """A server under load, into which a fault is injected, and what must hold then."""

    server: Server
    bundle: Path  # what it serves
    load: Load
    folder: Path
    settle_s: float  # how long the load runs undisturbed before and after the fault, seconds
    scale: float  # factor on how much of the fault is injected
    facts: list[str] = field(default_factory=list)  # what to tell about the fault
    checks: dict[str, bool] = field(default_factory=dict)  # what must hold, and whether it did

    def many(self, number: int) -> int:
        """A number of faults, scaled."""
        return max(1, round(number * self.scale))

    async def inject(
        self, fault: Callable[[], Awaitable[object]], *, all_right: bool = True, limit_s: float = TIMEOUT_S
    ) -> Stats:
        """Injects a fault, which must end by itself, in the middle of the load; `all_right`: none of that may fail.

        If the server still runs, it must answer afterwards, and be idle otherwise.
        """
        over = asyncio.Event()
        running = asyncio.ensure_future(self.load.run(over.is_set))
        await asyncio.sleep(self.settle_s)
        try:
            await asyncio.wait_for(fault(), limit_s)
        except asyncio.TimeoutError:
            self.checks["the fault ends"] = False
        await asyncio.sleep(self.settle_s)
        over.set()
        done, _ = await asyncio.wait({running}, timeout=TIMEOUT_S)
        running.cancel()
        stats = self.load.stats
        self.checks["nothing hangs"] = bool(done) and "DEADLINE_EXCEEDED" not in stats.statuses
        self.checks["there was load"] = stats.answered.total() > 0
        if all_right:
            self.checks["every request of the load is answered, right"] = stats.all_right
        if self.server.process.poll() is None:
            await self.require_alive()
        return stats

    async def require_alive(self) -> None:
        """Checks that the server answers, and is idle otherwise."""
        probe = replace(self.load, number=1, streams=0.0, stats=Stats())
        await probe.run(lambda: probe.stats.sent.total() >= 3)
        self.checks["it answers afterwards"] = probe.stats.answered.total() == 3
        with Usage(self.server.process.pid) as usage:
            await asyncio.sleep(1.0)
        self.checks["it is idle afterwards"] = usage.cores < 0.5

    async def end(self) -> float:
        """Sends SIGTERM, and waits for the server's end. Returns the seconds that it took."""
        start = time.monotonic()
        self.server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.server.wait, TIMEOUT_S)
        return time.monotonic() - start


async def killed_clients(test: FaultTest) -> None:
    """Clients vanish with requests under way, some in the middle of an upload: their sockets close without a word."""
    model = ask_model(test.server.target)
    large = min(model.limits.max_images_per_request, 1024)
    rng, under_way = np.random.default_rng(0), list[int]()

    def again(client: Connection) -> None:
        asyncio.get_running_loop().call_soon(client.request, time.perf_counter())

    async def fault() -> None:
        for turn in range(test.many(8)):
            images, in_flight = (min(64, large), 16) if turn % 2 else (large, 4)
            prepared = prepare(Case("edit", "raw", "unary", images, in_flight), model)
            client = await Connection.to(test.server.target, prepared, Outcome(), again)
            for _ in range(in_flight):
                client.request(time.perf_counter())
            await asyncio.sleep(float(rng.uniform(0, 0.3)))
            under_way.append(client.under_way)
            client.abort()

    await test.inject(fault)
    test.facts.append(f"{len(under_way)} clients killed, {sum(under_way)} of their requests were under way")
    test.checks["clients were killed in mid-request"] = sum(under_way) > 0


async def half_sent(test: FaultTest) -> None:
    """Messages that never become whole: cut off, reset, left hanging, ended early.

    Some are still hanging when the server is told to stop.
    """
    declared = 100 * ask_model(test.server.target).image_size ** 2 * 3
    message = (struct.pack(">BI", 0, declared) + bytes(declared // 2))[: http2.WINDOW_BYTES]
    parts = [message[at : at + http2.FRAME_BYTES] for at in range(0, len(message), http2.FRAME_BYTES)]
    counts: Counter[str] = Counter()
    hanging: list[asyncio.StreamWriter] = []

    async def begin(way: str) -> None:
        _, writer = await asyncio.open_connection(*test.server.target.rsplit(":", 1))
        writer.write(http2.START + http2.opening(1, f"{SERVICE}Edit"))
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

    async def fault() -> None:
        for _ in range(test.many(40)):
            for way in ("closed", "reset", "ended early", "left hanging"):
                await begin(way)

    await test.inject(fault)
    test.facts.append("half-sent messages: " + ", ".join(f"{count} {way}" for way, count in counts.items()))
    seconds = await test.end()
    test.facts.append(f"with {len(hanging)} of them open, SIGTERM took {seconds:.1f} s")
    # gRPC's core waits 20 s for connections that don't answer its ping before it lets them go.
    test.checks["nor do they keep it from ending before its grace is over"] = seconds < GRACE_S - 5
    for writer in hanging:
        writer.close()


async def deadline_storm(test: FaultTest) -> None:
    """Floods of calls with deadlines of 1 to 300 ms, and of calls that are cancelled after as long."""
    storm, rng = Stats(), np.random.default_rng(0)

    async def fault() -> None:
        async with connect(test.server.target) as channel:
            for _ in range(test.many(20)):
                calls = []
                for number in range(50):
                    request, seconds = test.load.workload.draw(rng), float(10 ** rng.uniform(-3, -0.5))
                    limits = {"timeout": seconds} if number % 2 else {"cancel_after": seconds}
                    asked = ask(stub_of(channel), test.load.workload, request, **limits)
                    calls.append(storm.count(request.method, asked))
                await asyncio.gather(*calls)

    await test.inject(fault)
    test.facts.append(f"storm: {storm.describe()}")
    test.facts += storm.common_reasons(4)
    given_up = {"DEADLINE_EXCEEDED", "CANCELLED"}
    test.checks["the storm ends in answers, deadlines and cancellations only"] = set(storm.statuses) <= given_up
    test.checks["none of its answers is wrong or lost"] = not storm.wrong and not storm.lost


async def sigterm(test: FaultTest) -> None:
    """SIGTERM under full load: what was accepted is answered, the rest refused by name."""
    test.load.until_refused = True
    stats = await test.inject(test.end, all_right=False)
    unclear = [reason for reason in stats.reasons if not _REFUSED_BY_NAME.match(reason)]
    test.facts += stats.common_reasons(5)
    test.checks["every client is refused in the end"] = stats.statuses.total() + len(stats.wrong) == test.load.number
    test.checks["every request is answered right, or refused by name"] = not (unclear or stats.wrong or stats.lost)


async def sighup(test: FaultTest) -> None:
    """SIGHUP under full load with a new bundle, several times, and once with a damaged one."""
    manifest, seen = test.bundle / MANIFEST, list[str]()

    async def fingerprint() -> str:
        return (await asyncio.to_thread(ask_model, test.server.target)).fingerprint

    def reload(text: str) -> None:
        renewed = test.bundle / "manifest.new"
        renewed.write_text(text)
        renewed.replace(manifest)
        test.server.process.send_signal(signal.SIGHUP)

    async def fault() -> None:
        seen.append(await fingerprint())
        for number in range(test.many(4)):
            known = Manifest.from_json(manifest.read_text())
            reload(replace(known, run={**known.run, "reload": number}).to_json())
            while (now := await fingerprint()) == seen[-1]:
                await asyncio.sleep(0.1)
            seen.append(now)
        reload(manifest.read_text().replace('"latent_dim"', '"latent_dam"'))
        while "is refused, the old one stays" not in test.server.log:
            await asyncio.sleep(0.1)

    await test.inject(fault)
    test.facts.append(f"{len(set(seen)) - 1} reloads, and a damaged bundle")
    test.checks["every new bundle was taken"] = len(set(seen)) == test.many(4) + 1
    test.checks["the damaged bundle was not"] = bool(seen) and await fingerprint() == seen[-1]


async def backend_raises(test: FaultTest) -> None:
    """The backend raises in the middle of a batch: only that batch's requests fail, with a fixed text."""
    workload, stats, over = test.load.workload, test.load.stats, asyncio.Event()
    rows = [slice(4 * number, 4 * number + 1 + number % 4) for number in range(16)]
    failed: Counter[int] = Counter()

    async def neighbour(number: int) -> None:
        request = (workload.edit if number % 2 else workload.encode)(rows[number])
        async with connect(test.server.target) as channel:
            while not over.is_set():
                failed[number] += not await stats.count(request.method, ask(stub_of(channel), workload, request))

    running = asyncio.gather(*map(neighbour, range(len(rows))))
    await asyncio.sleep(test.settle_s)
    poisoned = await _poison(test)
    over.set()
    _, late = await asyncio.wait({running}, timeout=TIMEOUT_S)

    owners = {zlib.crc32(one.tobytes()): number for number, part in enumerate(rows) for one in workload.pictures[part]}
    failures = (test.folder / "failures").read_text().splitlines()
    batches = [{owners[crc] for crc in json.loads(line) if crc in owners} for line in failures]
    expected = Counter(number for batch in batches for number in batch)
    reasons = poisoned.reasons + stats.reasons
    test.facts.append(f"{len(batches)} batches failed")
    test.facts += stats.common_reasons(3)
    test.checks["nothing hangs"] = not late
    test.checks["exactly the requests of those batches fail"] = +failed == expected and expected.total() > 0
    test.checks["no marked image is answered"] = not poisoned.answered
    test.checks["they get INTERNAL, with one fixed text"] = len(reasons) == 1 and set(stats.statuses) == {"INTERNAL"}
    test.checks["the text doesn't give the reason away"] = not any(SECRET in reason for reason in reasons)
    test.checks["all other answers are right"] = not stats.wrong and not stats.lost
    await test.require_alive()


async def _poison(test: FaultTest) -> Stats:
    """Sends marked images, one at a time, until one hits others that were in its batch."""
    poisoned = test.load.workload.pictures[:1].copy()
    poisoned.reshape(-1)[: len(MARK)] = MARK
    both = (
        Request("Encode", messages.encode_request(poisoned)),
        Request("Edit", messages.edit_request(StreamEdit(poisoned, *test.load.workload.edits[0]))),
    )
    stats = Stats()
    async with connect(test.server.target) as channel:
        for number in range(_MOST_POISON):
            if number >= test.many(100) and test.load.stats.statuses:
                break
            request = both[number % 2]
            await stats.count(request.method, ask(stub_of(channel), test.load.workload, request))
            await asyncio.sleep(0.02)
    return stats


async def slow_readers(test: FaultTest) -> None:
    """Streams that send a lot and read nothing for a while; half of them never do."""
    pause, length = max(2.0, 2 * test.settle_s), test.many(200)
    slow = Stats()

    async def read(number: int) -> int:
        rng, gives_up = np.random.default_rng([9, number]), number % 2 == 1
        async with connect(test.server.target) as channel:
            work = ask_stream(stub_of(channel), test.load.workload, rng, length, pause=TIMEOUT_S if gives_up else pause)
            try:
                return await asyncio.wait_for(work, pause if gives_up else TIMEOUT_S)
            except asyncio.TimeoutError:
                raise ClientError("CANCELLED", "given up by this client") from None

    async def fault() -> None:
        await asyncio.gather(*(slow.count("EditStream", read(number)) for number in range(test.many(16))))

    with Usage(test.server.process.pid) as usage:
        await test.inject(fault)
    test.facts.append(f"slow streams of {length} messages: {slow.describe()}")
    test.facts.append(f"server's memory: {usage.rss_mib[0][1]:.0f} MiB before, {usage.peak_mib:.0f} at its peak")
    read_on = (test.many(16) + 1) // 2
    test.checks["slow readers get every answer, right and in order"] = slow.answered.total() == read_on
    test.checks["none of their answers is wrong or lost"] = not slow.wrong and not slow.lost


async def restarts(test: FaultTest) -> None:
    """Two servers are ended in turn by SIGTERM and started again, at addresses that stay: no call fails.

    The load comes from plain gRPC channels with round robin and health checking, and without retries; this project's
    clients ask beside it.
    """
    number, own, over, codes = test.many(10), Stats(), asyncio.Event(), list[int | None]()
    with ExitStack() as stack:

        def start(port: int = 0) -> Server:
            return stack.enter_context(Server(["-m", "engine", "--bundle", test.bundle, *ROOM], port))

        started = [await asyncio.to_thread(start) for _ in range(2)]
        test.load.target = "ipv4:" + ",".join(server.target for server in started)
        test.load.options = BALANCED

        async def own_client(seed: int) -> None:
            rng = np.random.default_rng([8, seed])
            async with AsyncClient(test.load.target, timeout=TIMEOUT_S) as client:
                while not over.is_set():
                    await own.count("Edit", ask_own(client, test.load.workload, rng))

        async def fault() -> None:
            running = asyncio.gather(*map(own_client, range(test.load.number)))
            for turn in range(number):
                server = started[turn]
                server.process.send_signal(signal.SIGTERM)
                codes.append(await asyncio.to_thread(server.wait, TIMEOUT_S))
                started.append(await asyncio.to_thread(start, int(server.target.rpartition(":")[2])))
                await asyncio.sleep(test.settle_s)
            over.set()
            await running

        stats = await test.inject(fault, limit_s=number * TIMEOUT_S)
        log = "".join(server.log for server in started)
    for name, of in (("plain", stats), ("this project's", own)):
        test.facts.append(f"{name} clients: {of.describe()}; longest wait {of.calls.percentiles()['max']:,.0f} ms")
        test.facts += of.common_reasons(3)
    test.checks["every call of this project's clients is answered, right"] = own.all_right
    test.checks["every server ends with exit code 0"] = codes == [0] * number
    test.checks["no log has a trace"] = "Traceback" not in log


_ALL = (killed_clients, half_sent, deadline_storm, sigterm, sighup, backend_raises, slow_readers, restarts)
SCENARIOS: dict[str, Callable[[FaultTest], Coroutine[Any, Any, None]]] = {
    scenario.__name__.replace("_", "-"): scenario for scenario in _ALL
}
