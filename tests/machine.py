"""Commands run where the machine is against them: on a small disk, on a read-only one, without permission."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from servers import ROOT

Result = subprocess.CompletedProcess[str]


def on_disks(folder: Path, disks: Mapping[str, str], command: Sequence[object]) -> Result:
    """Runs a command in `folder`, where disks of their own, by name and mount's options, are for this command alone."""
    mounts = [f"mkdir {name} && mount -t tmpfs -o {options} none {name}" for name, options in disks.items()]
    script = " && ".join([*mounts, 'exec "$@"'])
    return _run(["unshare", "-Urm", "sh", "-c", script, "sh", *command], folder)


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
