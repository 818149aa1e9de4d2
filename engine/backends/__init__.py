"""Backends: runtimes that turn a contiguous batch into a batch. They know neither queues nor wires."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from engine.backends.base import CPU, CUDA, DEVICE_RULE, Backend, Options, bucket_sizes, cores, is_device, kind_of
from engine.backends.registry import BACKENDS, find, open_graphs
from engine.bundle import Bundle, Engine, Manifest
from engine.errors import BackendError, BundleError

__all__ = [
    "BACKENDS",
    "CPU",
    "CUDA",
    "DEVICE_RULE",
    "Backend",
    "Options",
    "cores",
    "is_device",
    "kind_of",
    "open_backend",
    "open_engine",
    "open_graphs",
    "warmup_calls",
]


# Before runtimes are imported, in this process or its children, what they tell of their use is switched off. As
# published, ONNX Runtime (from 1.29 on) tells Microsoft of every session, and OpenVINO and NNCF tell Google Analytics
# of every import, OpenVINO from a fork of the process.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# OpenVINO and NNCF do without this package where it can't be imported; its own opt-out writes into the home folder.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def open_backend(bundle: Bundle, threads: int | None = None, device: str | None = None) -> Backend:
    """Opens the runtime that the bundle's manifest names; to serve it, use `engine.proof.opening.open_proven`.

    The bundle is a verified one. `threads` that are None are every core that this process may use, a `device` that is
    None is the first of the kind that the manifest names.

    Raises:
        BundleError: When the manifest names a backend, a device or a precision that this engine doesn't have.
        BackendError: When the backend's package isn't installed, this machine lacks units for the precision, its plans
            were built for another GPU or another TensorRT, or `device` is of another kind.
    """
    manifest = bundle.manifest
    device = device or manifest.device
    if kind_of(device) != manifest.device:
        raise BackendError(
            f"the engines of {bundle.path} were built and proven for {manifest.device}, not for {device}; leave "
            f"--device out, or make another bundle with: {_retarget(bundle, f'--device {kind_of(device)}')}"
        )
    if find(manifest.backend).plan:
        _require_device_of(bundle, device)
    options = Options(
        backend=manifest.backend,
        device=device,
        precision=manifest.precision,
        max_batch_size=manifest.max_batch_size,
        threads=threads or cores(),
    )
    return open_engine(bundle.path, manifest.engine, options)


def open_engine(folder: Path, engine: Engine, options: Options) -> Backend:
    """Opens the files of an engine, which lie in a folder, as the engine says; errors as of `open_graphs`."""
    edit = folder / engine.edit if engine.edit else None
    options = replace(options, edit=edit, split=engine.split)
    return open_graphs(folder / engine.encoder, folder / engine.decoder, options)


def _require_device_of(bundle: Bundle, device: str) -> None:
    from engine.backends.tensorrt import fits, require_device  # noqa: PLC0415

    manifest = bundle.manifest
    here, built = require_device(manifest.backend, device), manifest.tensorrt.get("device", {})
    if not fits(built, here):
        raise BackendError(
            f"the plans of {bundle.path} were built for {_device(built)}, this machine has {_device(here)}; make "
            f"others here with: {_retarget(bundle, f'--backend {manifest.backend} --precision {manifest.precision}')}"
        )


def _retarget(bundle: Bundle, flags: str) -> str:
    return f"python -m export.retarget {quote(str(bundle.path))} {flags} --out BUNDLE2"


def _device(values: Mapping[str, Any]) -> str:
    if not values:
        return "something that the manifest does not name"
    listed = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return ", ".join(f"{name} {' and '.join(map(str, found))}" for name, found in listed.items())


def warmup_calls(backend: Backend, manifest: Manifest) -> Iterator[Callable[[], None]]:
    """Calls that run all graphs on batches of 1, 2, 4 ... max, so that no client pays for first ones.

    They raise BundleError when a graph's results don't have the shapes that the manifest promises.
    """
    for count in bucket_sizes(manifest.max_batch_size):
        yield partial(_call, backend, manifest, count)


def _call(backend: Backend, manifest: Manifest, count: int) -> None:
    size, dim = manifest.image_size, manifest.latent_dim
    mu, log_var = backend.encode(np.zeros((count, size, size, 3), np.uint8))
    images = backend.decode(np.zeros((count, dim), np.float32))
    backend.edit(np.zeros((count, size, size, 3), np.uint8), np.zeros((count, dim), np.float32))
    if mu.shape != (count, dim) or log_var.shape != (count, dim) or images.shape != (count, size, size, 3):
        raise BundleError(
            f"the graphs don't fit the manifest (image_size {size}, latent_dim {dim}): on {count} images "
            f"they gave mu {list(mu.shape)}, log_var {list(log_var.shape)}, images {list(images.shape)}"
        )
