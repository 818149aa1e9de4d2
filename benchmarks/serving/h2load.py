"""Closed-loop load by h2load, nghttp2's generator in C: it sends a prepared body and costs next to nothing.

It sees HTTP statuses but no gRPC ones, so the number of bytes that came back is compared with that of right answers.
"""

from __future__ import annotations

import re
import resource
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from serving.bodies import Prepared
from serving.figures import Calls
from serving.process import ScriptError
from serving.unary import Outcome

MAX_CONNECTIONS = 8

_WINDOW_BITS = "24"  # flow-control windows of 16 MiB: answers mustn't wait for credit


def available() -> bool:
    """Whether h2load is installed."""
    return shutil.which("h2load") is not None


def connections(in_flight: int) -> int:
    """Connections that requests are spread over: the largest divisor of `in_flight` up to `MAX_CONNECTIONS`."""
    return max(number for number in range(1, MAX_CONNECTIONS + 1) if in_flight % number == 0)


def closed_loop(target: str, prepared: Prepared, answer_bytes: int, in_flight: int, requests: int) -> Outcome:
    """Sends a body `requests` times, `in_flight` at a time.

    Args:
        target: HOST:PORT.
        prepared: What to send.
        answer_bytes: Length of the right answer's message.
        in_flight: Requests that are under way at any time.
        requests: How many in all; rounded up to a multiple of `in_flight`.

    Raises:
        ScriptError: h2load failed.
    """
    requests = -(-requests // in_flight) * in_flight
    connected = connections(in_flight)
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(struct.pack(">BI", 0, len(prepared.body)) + prepared.body)
        command = ["h2load", "-t", "1", "-n", str(requests), "-c", str(connected), "-m", str(in_flight // connected)]
        command += ["-w", _WINDOW_BITS, "-W", _WINDOW_BITS, "-d", str(body), "--log-file", str(log)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{target}{prepared.path}"]
        before = _children_seconds()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        cpu_s = _children_seconds() - before
        data = re.search(r"\((\d+)\) data", result.stdout)
        if result.returncode or data is None:
            raise ScriptError(f"h2load failed: {(result.stderr or result.stdout).strip()[-500:]}")
        table = np.loadtxt(log, ndmin=2) if log.stat().st_size else np.empty((0, 3))
    answered = table[table[:, 1] == 200]
    # Refusals have no message, or an empty one.
    wrong = requests - int(data.group(1)) // (answer_bytes + 5)
    starts = answered[:, 0] / 1e6
    return Outcome(
        Calls(starts - starts.min(initial=np.inf), answered[:, 2] / 1e6), {"not right": wrong} if wrong else {}, cpu_s
    )


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
