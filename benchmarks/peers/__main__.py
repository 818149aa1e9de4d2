"""The same Edit job behind other servers: requests a second, latency, memory and cold start, in one table.

    benchmarks/peers/environments.sh out/peers
    python benchmarks/peers --bundle bundle --environments out/peers --json peers.json

Every server edits one raw image a request, by 1 along the bundle's first attribute, on the same weights: as its users
would write it, with plain ONNX Runtime and the portable graphs, and then with this project's engine inside (`+engine`).
Each has the whole machine in its turn, with the load generator: h2load (nghttp2), written in C, a connection for each
request under way. Before it is measured, its answer is compared with ONNX Runtime's. Cold start is the time from the
process's start to that first answer; memory is that of all its processes after the load, shared pages divided (PSS).
"""
# ruff: noqa: E402 - Python puts this folder on its path, and not the two above it.

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from script import ServedFlags, machine, main_of, require_positive, summary, write_json
from serving.figures import markdown
from serving.usage import process_tree

from engine.bundle import Bundle
from export.errors import InputError
from peers.peer import NOT_YET, PEERS, Job, Peer

_START_S = 120.0


@dataclass(frozen=True, kw_only=True)
class PeersConfig(ServedFlags):
    """What to measure."""

    environments: Path
    """Folder with an environment for each peer, as environments.sh makes it."""
    peers: tuple[str, ...] = ()
    """Only these, for example `ours mosec mosec+engine`; none: all whose environment is there."""
    concurrency: tuple[int, ...] = (1, 8, 32)
    """Requests under way."""
    seconds: float = 4.0
    """How long each is measured."""


def measure(peer: Peer, job: Job, config: PeersConfig) -> dict[str, Any]:
    """Starts a server, checks its answer, loads it, and ends it.

    Returns seconds to the first answer, MB, and for each concurrency requests a second and latencies, ms.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        (Path(folder) / "body").write_bytes(peer.protocol.body(job))
        started = time.perf_counter()
        command, environment = peer.command(config.environments, config.bundle, port)
        with log.open("w") as out:
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, cwd=folder, stdout=out, stderr=out, start_new_session=True
            )
        try:
            _await(process, peer, job, port, log)
            start = time.perf_counter() - started
            loads = [_load(peer, port, count, config.seconds, Path(folder)) for count in config.concurrency]
            return {"start_s": start, "memory_mb": _memory(process), "loads": loads}
        finally:
            _end(process)


def _await(process: subprocess.Popen[bytes], peer: Peer, job: Job, port: int, log: Path) -> None:
    """Waits for the first answer, and compares it."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            answer = peer.protocol.ask(port, job)
            break
        except NOT_YET as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise InputError(f"{peer.name} gave no answer ({error}):\n{log.read_text()[-2000:]}") from None
            time.sleep(0.05)
    difference = np.abs(answer.astype(int) - job.expected.astype(int))
    if difference.max() > 2:
        raise InputError(f"{peer.name} answers with another image: {difference.max()} of 255 apart")


def _load(peer: Peer, port: int, count: int, seconds: float, folder: Path) -> dict[str, float]:
    log = folder / "requests"
    log.unlink(missing_ok=True)
    command = ["h2load", "-c", str(count), "-m", "1", "-t", "1", "-D", f"{seconds:g}", "--warm-up-time", "1"]
    command += ["-d", str(folder / "body"), "--log-file", str(log), *peer.protocol.flags]
    command.append(f"http://127.0.0.1:{port}{peer.protocol.path}")
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    times = np.array([int(took) for _, status, took in rows if status == "200"]) / 1000
    failed = len(rows) - len(times)
    rate = re.search(r"finished in [^,]*, ([\d.]+) req/s", output)
    if rate is None or not len(times):
        raise InputError(f"h2load measured nothing at {peer.name}:\n{output}")
    p50, p99 = np.percentile(times, (50, 99))
    return {"rate": float(rate[1]), "p50": float(p50), "p99": float(p99), "failed": failed}


def _memory(process: subprocess.Popen[bytes]) -> float:
    total = 0
    for one in process_tree(process.pid):
        with suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total / 1e6


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server with all its processes, also those that have left its session."""
    with suppress(psutil.Error):
        found = process_tree(process.pid)
        process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(found, timeout=8)
        for one in alive:
            with suppress(psutil.Error):
                one.kill()
    process.wait()


def cells(name: str, found: dict[str, Any], concurrency: Sequence[int]) -> dict[str, str]:
    """A peer as a line of the table."""
    line = {"": name, "start, s": f"{found['start_s']:.1f}", "MB": f"{found['memory_mb']:.0f}"}
    for count, load in zip(concurrency, found["loads"], strict=True):
        failed = f" ({load['failed']} failed)" if load["failed"] else ""
        line[f"c = {count}: requests/s, p50, p99 (ms)"] = "{rate:.0f}, {p50:.2f}, {p99:.2f}".format(**load) + failed
    return line


def work(config: PeersConfig) -> bool:
    """Measures all in turn, prints the table, writes the figures."""
    require_positive(config, "concurrency", "seconds")
    if not shutil.which("h2load"):
        raise InputError("h2load is missing; install nghttp2's tools (Debian: nghttp2-client)")
    if unknown := set(config.peers) - set(PEERS):
        raise InputError(f"--peers {' '.join(sorted(unknown))}: there are {', '.join(PEERS)}")
    job = Job.of(Bundle.load(config.bundle))
    results, whole = {}, True
    for name, peer in PEERS.items():
        if name in config.peers or (not config.peers and peer.python(config.environments).exists()):
            try:
                results[name] = measure(peer, job, config)
                print(*cells(name, results[name], config.concurrency).values(), sep=" | ", flush=True)
            except InputError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                whole = False
    table = markdown([cells(name, found, config.concurrency) for name, found in results.items()])
    here = machine()
    print(summary(here), table, sep="\n\n")
    write_json(config.json, {"machine": here, "concurrency": config.concurrency, "peers": results})
    return whole


main = main_of(PeersConfig, work, __doc__)

if __name__ == "__main__":
    sys.exit(main())
