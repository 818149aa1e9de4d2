"""What may go wrong around a server, each with load on it that must not notice."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from engine.bundle import MANIFEST, Manifest
from protos import dfcvae_pb2 as pb
from serving.answers import WrongAnswer
from serving.bodies import ask_model
from serving.clients import Crowd, Tally, connect, stub_of
from serving.http2 import WINDOW_BYTES, HalfCall
from serving.menu import Menu, Order, moves, stream_once
from serving.poisoned_server import MARK, SECRET
from serving.process import ROOT, Server, Usage

HANG_S = 120.0
"""What takes longer hangs."""

_MOST_POISON = 2000
_EDIT = "/dfcvae.v1.LatentEngine/Edit"
_REFUSED_BY_NAME = ("shutting down", "failed to connect", "Connection refused")
# What grpc.aio makes of the server's status when it arrives while a stream is being written; unary calls don't have it.
_OVERTAKEN_WRITE = "INTERNAL: Internal error from Core"


@dataclass
class Scene:
    """A server with load on it, and somebody who makes trouble.

    Attributes:
        server: The server.
        menu: What the load asks for.
        crowd: The load.
        folder: Scratch.
        settle_s: How long the load runs undisturbed, before and after.
        scale: Factor on how much trouble is made.
        grace_s: How long the server waits for accepted requests when it is told to stop, seconds.
        facts: What to tell about the trouble.
        checks: What must hold, and whether it did.
    """

    server: Server
    menu: Menu
    crowd: Crowd
    folder: Path
    settle_s: float
    scale: float
    grace_s: float
    facts: list[str] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)

    def many(self, number: int) -> int:
        """A number of troubles, scaled."""
        return max(1, round(number * self.scale))

    async def disturb(self, trouble: Callable[[], Awaitable[None]]) -> Tally:
        """Makes trouble in the middle of the load; the load must end by itself."""
        over = asyncio.Event()
        running = asyncio.ensure_future(self.crowd.run(over.is_set))
        try:
            await asyncio.sleep(self.settle_s)
            try:
                await asyncio.wait_for(trouble(), HANG_S)
            except asyncio.TimeoutError:
                self.checks["the trouble ends"] = False
            await asyncio.sleep(self.settle_s)
        finally:
            over.set()
        done, _ = await asyncio.wait({running}, timeout=HANG_S)
        self.checks["nothing hangs"] = bool(done) and "DEADLINE_EXCEEDED" not in self.crowd.tally.statuses
        running.cancel()
        return self.crowd.tally

    def require_untouched(self, tally: Tally) -> None:
        """The load got every answer, and all were right."""
        self.checks["every request of the load is answered, right"] = not (tally.statuses or tally.wrong or tally.lost)
        self.checks["there was load"] = sum(tally.answered.values()) > 0

    async def require_alive(self) -> None:
        """The server answers, and works on nothing that nobody waits for."""
        probe = replace(self.crowd, number=1, streams=0.0, timeout_s=HANG_S, tally=Tally())
        await probe.run(lambda: sum(probe.tally.sent.values()) >= 3)
        self.checks["it answers afterwards"] = sum(probe.tally.answered.values()) == 3
        with Usage(self.server.pid) as usage:
            await asyncio.sleep(1.0)
        self.checks["it is idle afterwards"] = usage.cores < 0.5


async def killed_clients(scene: Scene) -> None:
    """Client processes are killed with requests under way, some in the middle of an upload."""
    model = ask_model(scene.server.target)
    rng = np.random.default_rng(0)
    killed = 0

    async def trouble() -> None:
        nonlocal killed
        largest = min(model.limits.max_images_per_request, 1024)
        for turn in range(scene.many(8)):
            count, in_flight = (min(64, largest), 16) if turn % 2 else (largest, 4)
            body = scene.folder / "body"
            body.write_bytes(_edit_of_noise(count, model, turn).SerializeToString())
            command = [sys.executable, "-m", "serving.victim", scene.server.target, _EDIT, str(body), str(in_flight)]
            victim = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT / "benchmarks", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert victim.stdout is not None
            await victim.stdout.readline()
            await asyncio.sleep(float(rng.uniform(0, 0.3)))
            victim.kill()
            killed += await victim.wait() == -signal.SIGKILL

    scene.require_untouched(await scene.disturb(trouble))
    scene.facts.append(f"{killed} client processes killed, each with 4 or 16 requests under way")
    scene.checks["clients were killed in mid-request"] = killed > 0


async def half_sent(scene: Scene) -> None:
    """Messages that never become whole: cut off, reset, left hanging, ended early; and bytes that aren't HTTP/2.

    Some are still hanging when the server is told to stop.
    """
    model = ask_model(scene.server.target)
    declared = 100 * model.image_size**2 * 3
    counts: Counter[str] = Counter()
    hanging: list[HalfCall] = []

    async def begin(way: str) -> None:
        sent = min(declared // 2, WINDOW_BYTES - 5)
        call = await HalfCall.begin(scene.server.target, _EDIT, declared, sent, end=way == "ended early")
        counts[way] += 1
        if way in ("closed", "reset"):
            call.close(reset=way == "reset")
        else:
            hanging.append(call)

    async def trouble() -> None:
        for _ in range(scene.many(40)):
            for way in ("closed", "reset", "ended early", "left hanging"):
                await begin(way)
        host, _, port = scene.server.target.rpartition(":")
        for _ in range(scene.many(10)):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(np.random.default_rng(counts["no HTTP/2"]).bytes(4096))
            counts["no HTTP/2"] += 1
            writer.close()

    scene.require_untouched(await scene.disturb(trouble))
    scene.facts.append("half-sent messages: " + ", ".join(f"{count} {way}" for way, count in counts.items()))
    await scene.require_alive()
    start = time.monotonic()
    scene.server.signal(signal.SIGTERM)
    code = await asyncio.to_thread(scene.server.wait, HANG_S)
    scene.facts.append(f"with {len(hanging)} of them open, SIGTERM took {time.monotonic() - start:.1f} s")
    scene.checks["nor do they keep it from ending, in half of its grace"] = (
        code == 0 and time.monotonic() - start < scene.grace_s / 2
    )
    for call in hanging:
        call.close()


async def deadline_storm(scene: Scene) -> None:
    """Floods of calls with deadlines of 1 to 300 ms, and of calls that are cancelled after as long."""
    storm = Tally()
    rng = np.random.default_rng(0)

    async def one(stub: Any) -> None:
        order, patience = scene.menu.draw(rng), float(10 ** rng.uniform(-3, -0.5))
        if rng.integers(2):
            await storm.ask(stub, order, patience)
        else:
            await storm.ask(stub, order, HANG_S, cancel_after=patience)

    async def trouble() -> None:
        async with connect(scene.server.target) as channel:
            stub = stub_of(channel)
            for _ in range(scene.many(20)):
                await asyncio.gather(*(one(stub) for _ in range(50)))

    scene.require_untouched(await scene.disturb(trouble))
    scene.facts.append(f"storm: {storm.describe()}")
    given_up = {"DEADLINE_EXCEEDED", "CANCELLED"}
    scene.checks["the storm ends in answers, deadlines and cancellations only"] = set(storm.statuses) <= given_up
    scene.checks["none of its answers is wrong or lost"] = not storm.wrong and not storm.lost


async def sigterm(scene: Scene) -> None:
    """SIGTERM under full load: what was accepted is answered, the rest refused by name."""
    scene.crowd.until_refused = True
    code: int | None = None

    async def trouble() -> None:
        nonlocal code
        scene.server.signal(signal.SIGTERM)
        code = await asyncio.to_thread(scene.server.wait, HANG_S)

    tally = await scene.disturb(trouble)
    unclear = [
        reason
        for reason in tally.reasons
        if reason != _OVERTAKEN_WRITE
        and not (reason.startswith("UNAVAILABLE") and any(text in reason for text in _REFUSED_BY_NAME))
    ]
    scene.facts += [f"{count} x {reason}" for reason, count in tally.reasons.most_common(5)]
    scene.checks["every client is refused in the end"] = tally.statuses.total() + len(tally.wrong) == scene.crowd.number
    scene.checks["it ends with exit code 0"] = code == 0
    scene.checks["every request is answered right, or refused by name"] = not (unclear or tally.wrong or tally.lost)
    scene.checks["there was load"] = sum(tally.answered.values()) > 0


async def sighup(scene: Scene, bundle: Path) -> None:
    """SIGHUP under full load with a new bundle, several times, and once with a damaged one."""
    target, seen = scene.server.target, []

    async def fingerprint() -> str:
        return (await asyncio.to_thread(ask_model, target)).fingerprint

    async def reload(number: int) -> None:
        manifest = Manifest.from_json((bundle / MANIFEST).read_text())
        renewed = bundle / "manifest.new"
        renewed.write_text(replace(manifest, run={**manifest.run, "reload": number}).to_json())
        renewed.replace(bundle / MANIFEST)
        scene.server.signal(signal.SIGHUP)

    async def trouble() -> None:
        seen.append(await fingerprint())
        for number in range(scene.many(4)):
            await reload(number)
            while (now := await fingerprint()) == seen[-1]:
                await asyncio.sleep(0.1)
            seen.append(now)
        good = (bundle / MANIFEST).read_bytes()
        (bundle / MANIFEST).write_bytes(good.replace(b'"latent_dim"', b'"latent_dam"'))
        scene.server.signal(signal.SIGHUP)
        while "is refused, the old one stays" not in scene.server.log:
            await asyncio.sleep(0.1)
        (bundle / MANIFEST).write_bytes(good)

    scene.require_untouched(await scene.disturb(trouble))
    scene.facts.append(f"{len(set(seen)) - 1} reloads, and a damaged bundle")
    scene.checks["every new bundle was taken"] = len(set(seen)) == scene.many(4) + 1
    scene.checks["the damaged bundle was not"] = bool(seen) and await fingerprint() == seen[-1]


async def poison(scene: Scene, failures: Path) -> None:
    """The backend raises in the middle of a batch: only that batch's requests fail, with a fixed text."""
    pictures, tally, over = scene.menu.answers.pictures, Tally(), asyncio.Event()
    rows = [slice(4 * number, 4 * number + 1 + number % 4) for number in range(min(16, len(pictures) // 4))]
    failed: Counter[int] = Counter()

    async def bystander(number: int) -> None:
        order = scene.menu.order("edit" if number % 2 else "encode", rows[number], 0)
        async with connect(scene.server.target) as channel:
            while not over.is_set():
                failed[number] += not await tally.ask(stub_of(channel), order, HANG_S)

    running = asyncio.ensure_future(_all([bystander(number) for number in range(len(rows))]))
    await asyncio.sleep(scene.settle_s)
    poisoner = await _poison(scene, lambda: tally.statuses.total() > 0)
    over.set()
    _, late = await asyncio.wait({running}, timeout=HANG_S)

    owners = {zlib.crc32(image.tobytes()): number for number, part in enumerate(rows) for image in pictures[part]}
    batches = [{owners[crc] for crc in json.loads(line) if crc in owners} for line in failures.read_text().splitlines()]
    expected = Counter(number for batch in batches for number in batch)
    reasons = poisoner + tally.reasons
    scene.crowd.tally = tally
    scene.facts.append(f"{len(batches)} batches failed")
    scene.facts += [f"{count} x {reason}" for reason, count in reasons.most_common(3)]
    scene.checks["nothing hangs"] = not late
    scene.checks["exactly the requests of those batches fail"] = +failed == expected and expected.total() > 0
    scene.checks["they get INTERNAL, with one fixed text"] = len(reasons) == 1 and set(tally.statuses) == {"INTERNAL"}
    scene.checks["the text doesn't give the reason away"] = not any(SECRET in reason for reason in reasons)
    scene.checks["all other answers are right"] = not tally.wrong and not tally.lost


async def _poison(scene: Scene, hit: Callable[[], bool]) -> Counter[str]:
    """Sends marked images, one at a time, until one `hit` others that were in its batch; what was said of them."""
    poisoned = scene.menu.answers.pictures[:1].copy()
    poisoned.reshape(-1)[: len(MARK)] = MARK
    size = scene.menu.answers.image_size
    raw = pb.RawImages(count=1, height=size, width=size, data=poisoned.tobytes())
    images = pb.ImageBatch(raw=raw)
    encode = Order("Encode", pb.EncodeRequest(images=images), 1, lambda answer: None)
    edit = Order("Edit", pb.EditRequest(images=images, **moves(scene.menu.answers, 0)), 1, lambda answer: None)
    tally = Tally()
    async with connect(scene.server.target) as channel:
        for number in range(_MOST_POISON):
            if number >= scene.many(100) and hit():
                break
            await tally.ask(stub_of(channel), edit if number % 2 else encode, HANG_S)
            await asyncio.sleep(0.02)
    return tally.reasons + Counter({"answered": tally.answered.total()})


async def slow_readers(scene: Scene) -> None:
    """Streams that send a lot and read nothing for a while; half of them never do."""
    pause = max(2.0, 2 * scene.settle_s)
    slow = Tally()

    async def reader(number: int) -> None:
        rng = np.random.default_rng([9, number])
        async with connect(scene.server.target) as channel:
            slow.sent["EditStream"] += 1
            gives_up = number % 2 == 1
            work = stream_once(
                stub_of(channel),
                scene.menu,
                rng,
                messages=scene.many(200),
                timeout=HANG_S,
                pause=HANG_S if gives_up else pause,
            )
            try:
                if gives_up:
                    await asyncio.wait_for(work, pause)
                else:
                    await work
                slow.answered["EditStream"] += 1
            except asyncio.TimeoutError:
                slow.statuses["given up by us"] += 1
            except grpc.RpcError as error:
                slow.refuse(error)
            except WrongAnswer as error:
                slow.wrong.append(str(error))

    async def trouble() -> None:
        await asyncio.gather(*map(reader, range(scene.many(16))))

    with Usage(scene.server.pid) as usage:
        scene.require_untouched(await scene.disturb(trouble))
    scene.facts.append(f"slow streams of {scene.many(200)} messages: {slow.describe()}")
    scene.facts.append(f"server's memory: {usage.rss_mib[0][1]:.0f} MiB before, {usage.peak_mib:.0f} at its peak")
    checks = scene.checks
    checks["slow readers get every answer, right and in order"] = (
        slow.answered["EditStream"] == (scene.many(16) + 1) // 2
    )
    checks["none of their answers is wrong or lost"] = not slow.wrong and not slow.lost


async def _all(work: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*work)


def _edit_of_noise(count: int, model: pb.GetModelResponse, seed: int) -> pb.EditRequest:
    size = model.image_size
    data = np.random.default_rng(seed).bytes(count * size * size * 3)
    raw = pb.RawImages(count=count, height=size, width=size, data=data)
    direction = np.zeros(model.latent_dim, "<f4").tobytes()
    return pb.EditRequest(images=pb.ImageBatch(raw=raw), edits=[pb.Edit(direction=direction, strength=1.0)])
