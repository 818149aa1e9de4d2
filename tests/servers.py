"""Real server processes for tests, in an environment where torch and its friends can't be imported."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
END_TO_END = ROOT / "tests" / "end_to_end"

# Python imports a module of this name at its start, wherever PYTHONPATH has one.
_BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"{name} was made unimportable by a test", name=name)

sys.meta_path.insert(0, Blocker())
"""
STRANGERS = ("torch", "torchvision", "onnx", "trainer", "export")


def environment_without_torch(folder: Path, names: Sequence[str] = STRANGERS) -> dict[str, str]:
    """Environment variables for a Python that can import the engine, but nothing that it mustn't need."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_BLOCKER.replace("NAMES", repr(names)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), str(ROOT / "tests")])}


def run_python(
    arguments: Sequence[str], folder: Path, without: Sequence[str] = STRANGERS
) -> "subprocess.CompletedProcess[str]":
    """Runs Python to its end, at the root, where some packages can't be imported; gives its exit code and output."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment_without_torch(folder / "site", without),
        capture_output=True,
        text=True,
        check=False,
    )


# Exit code and output of the server's main function, for each of several command lines.
_STARTS = """
import contextlib, io, json, sys
from engine.__main__ import main
ended = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["engine", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main()
    ended.append((code, out.getvalue(), err.getvalue()))
json.dump(ended, sys.stdout)
"""


def failed_starts(commands: Sequence[Sequence[str]], folder: Path) -> "list[subprocess.CompletedProcess[str]]":
    """What servers that can't start say, one after the other in one process."""
    result = run_python(["-c", _STARTS, json.dumps(commands)], folder)
    assert result.returncode == 0, result.stderr
    ended = zip(commands, json.loads(result.stdout), strict=True)
    return [subprocess.CompletedProcess(words, *told) for words, told in ended]


def start_python(arguments: Sequence[str], folder: Path, **streams: Any) -> "subprocess.Popen[str]":
    """Starts Python, at the root, in the same environment; what it says goes into pipes, unless `streams` say where."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment_without_torch(folder / "site"),
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


def client_workers(target: str, folder: Path, number: int = 3, rounds: int = 0) -> "list[subprocess.Popen[str]]":
    """Processes of end_to_end/client_worker.py, which have had their first answers."""
    script = str(END_TO_END / "client_worker.py")
    workers = [start_python([script, target, str(seed), str(rounds)], folder) for seed in range(number)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "started\n"
    return workers


class ServerProcess:
    """A server process; entering its context waits until it serves, leaving it kills what still runs.

    Args:
        command: What Python is to run, for example ["-m", "engine", "--bundle", ...]; `--port` is added.
        folder: Where its log goes.
        port: TCP port; 0 lets the server choose.
        variables: Environment variables beside those of the tests.
        python: The interpreter.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        port: int = 0,
        variables: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self.target = f"127.0.0.1:{port}"
        self._log = folder / "server.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [python, *command, "--port", str(port)],
                cwd=ROOT,
                env={**environment_without_torch(folder / "site"), **(variables or {})},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text()

    def wait_for_log(self, text: str, count: int = 1) -> str:
        """Waits until the log has a text so often (or for the test's time limit); gives the log."""
        while (log := self.log).count(text) < count:
            assert self.process.poll() is None, f"the server ended without {text!r} in its log:\n{log}"
            time.sleep(0.01)
        return log

    def metric(self, name: str, **labels: str) -> float:
        """One figure as Prometheus would read it now, for a server with --metrics-port; 0 where there is none yet."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.scrape())
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        )

    def scrape(self) -> str:
        """What a server with --metrics-port says to Prometheus."""
        (url,) = re.findall(r"metrics on (http://\S+)", self.wait_for_log("metrics on http"))
        with urllib.request.urlopen(url, timeout=30) as response:
            text: str = response.read().decode()
        return text

    def memory(self, figure: str = "VmRSS") -> int:
        """Its memory, MiB; VmHWM is the most that it ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith(figure))

    def hang_up(self) -> None:
        """Sends SIGHUP: bundles and tokens are read again."""
        self.process.send_signal(signal.SIGHUP)

    def terminate(self) -> None:
        """Sends SIGTERM, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Waits for its end and gives the exit code."""
        return self.process.wait(timeout=60)

    def __enter__(self) -> "ServerProcess":
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("serving dfcvae.v1.LatentEngine on "):
            self.kill()
            raise AssertionError(f"the server said {line!r}\n{self.log}")
        self.target = line.split()[-1]
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends it at once, if it still runs."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def server_of(bundle: Path | str, folder: Path, *options: str, **settings: Any) -> ServerProcess:
    """A server of a bundle, or of NAME=BUNDLE, with flags, and the settings that a `ServerProcess` has."""
    return ServerProcess(["-m", "engine", "--bundle", str(bundle), *options], folder, **settings)
