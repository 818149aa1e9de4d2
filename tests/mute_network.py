"""A machine whose packets are dropped: commands run in namespaces of their own, whose resolver never answers.

As a script, inside the namespaces: `mute_network.py FOLDER COMMAND...` brings the loopback device up, puts a resolver
there that notes every question in FOLDER/questions, and runs the command.
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESOLVER = "127.0.0.99"

# Python imports a module of this name at its start, wherever PYTHONPATH has one.
_WATCHER = """
import os, sys

NUMBERS = ("127.0.0.1", "0.0.0.0", "localhost")

def watch(event, arguments):
    forks = ("os.fork", "os.forkpty")
    if event in (*forks, "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"):
        if event in (*forks, "socket.gethostbyaddr") or arguments[0] not in NUMBERS:
            with open(os.path.join(FOLDER, "events"), "a") as file:
                file.write(f"{event} {arguments[:1]} in {sys.argv}\\n")

sys.addaudithook(watch)
"""


@dataclass(frozen=True)
class Observed:
    """What a command did: its exit code and output; forks and look-ups; what it left in its home folder."""

    ended: "subprocess.CompletedProcess[str]"
    events: str
    questions: bytes
    home: list[Path]


def run_on_mute_network(command: Sequence[object], folder: Path) -> Observed:
    """Runs a Python command to its end as on a user's machine, not on one for continuous integration."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urmn", "true"], check=False).returncode:
        pytest.skip("this machine lends no namespaces of its own")
    site, home = folder / "site", folder / "home"
    site.mkdir()
    home.mkdir()
    (site / "sitecustomize.py").write_text(_WATCHER.replace("FOLDER", repr(str(folder))))
    (folder / "questions").touch()
    (folder / "events").touch()
    kept = {name: os.environ[name] for name in ("PATH", "OPENBLAS_CORETYPE", "LD_LIBRARY_PATH") if name in os.environ}
    path = os.pathsep.join([str(site), str(ROOT), str(ROOT / "tests")])
    ended = subprocess.run(
        ["unshare", "-Urmn", sys.executable, __file__, str(folder), sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": path, "HOME": str(home), "MPLCONFIGDIR": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    left = [entry for entry in home.rglob("*") if entry.is_file()]
    return Observed(ended, (folder / "events").read_text(), (folder / "questions").read_bytes(), left)


def main() -> int:
    """Runs a command behind the resolver; the exit code is the command's."""
    folder, *command = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        siocsifflags, iff_up = 0x8914, 0x1
        fcntl.ioctl(device, siocsifflags, struct.pack("16sh14x", b"lo", iff_up))
    configuration = Path(folder) / "resolv.conf"
    configuration.write_text(f"nameserver {RESOLVER}\n")
    subprocess.run(["mount", "--bind", str(configuration), "/etc/resolv.conf"], check=True)
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind((RESOLVER, 53))

    def note() -> None:
        while True:
            question = resolver.recv(4096)
            with (Path(folder) / "questions").open("ab") as file:
                file.write(question + b"\n")

    threading.Thread(target=note, daemon=True).start()
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
