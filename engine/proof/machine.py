"""The machine that engines were proven on: on another one they are proven again before they serve."""

import hashlib
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine.backends import BACKENDS, CUDA, kind_of
from engine.backends.base import cores, gpu_of
from engine.bundle import Manifest


def machine_of(manifest: Manifest, threads: int | None = None, device: str | None = None) -> dict[str, str]:
    """What decides, beside the engines themselves, what a bundle's engines compute here; its backend must be installed.

    `threads` that are None are every core that this process may use, a `device` that is None is the first of the
    manifest's kind.

    Returns:
        For example {"openvino": "2026.4.0", "cpu": "Intel Xeon, flags 3f5a...", "threads": "2", "max_batch": "32"}; for
        plans, TensorRT's version and the GPU in the place of these.

    Raises:
        BackendError: the backend needs a GPU, and there is none.
    """
    device, row = device or manifest.device, BACKENDS[manifest.backend]
    if row.plan:
        from engine.backends.tensorrt import require_device  # noqa: PLC0415

        return {**require_device(manifest.backend, device), "max_batch": str(manifest.max_batch_size)}
    found = {**versions_of(row.packages), "cpu": _cpu()}
    if kind_of(device) == CUDA:
        from engine.backends.cuda import Cuda  # noqa: PLC0415

        found |= Cuda(gpu_of(device)).gpu()
    return {**found, "threads": str(threads or cores()), "max_batch": str(manifest.max_batch_size)}


def cpu_model() -> str:
    """Name of this machine's processor, as far as the system tells."""
    return _of_cpu("model name") or platform.processor() or platform.machine()


def _cpu() -> str:
    """The processor, and a hash of the units that the system finds in it."""
    flags = _of_cpu("flags") or _of_cpu("Features")
    return f"{cpu_model()}, flags {hashlib.sha256(flags.encode()).hexdigest()[:12]}"


def _of_cpu(key: str) -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
