"""Commands run where the machine is against them: on a small disk, on a read-only one, without permission."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

Result = subprocess.CompletedProcess[str]


def on_small_disk(mount: Path, kilobytes: int, command: Sequence[object], *, read_only: bool = False) -> Result:
    """Runs a command in `mount`, a disk of its own that is there for this command alone."""
    options = f"size={kilobytes}k" + (",ro" if read_only else "")
    script = f'mount -t tmpfs -o {options} none "$0" && cd "$0" && exec "$@"'
    return _run(["unshare", "-Urm", "sh", "-c", script, mount, *command], mount)


def as_nobody(folder: Path, command: Sequence[object]) -> Result:
    """Runs a command in `folder` with the permissions that its owner has: none of root's."""
    return _run(["unshare", "-U", *command], folder)


def _run(command: Sequence[object], folder: Path) -> Result:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("this machine lends no namespaces of its own")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
