"""Backends: runtimes that turn a contiguous batch into a batch. They know neither queues nor wires."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engine.backends.reports import switch_off_usage_reports
from engine.bundle import Bundle, Manifest
from engine.errors import BackendError, BundleError

switch_off_usage_reports()

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Backend(Protocol):
    """The two graphs of a model. Inputs are C-contiguous; the arrays that come back belong to the caller.

    Batches come one after the other, from any thread. A backend that computes several at the same time in less time
    says with an attribute `overlaps`, an int, how many others may come while it is at one.
    """

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """Images, uint8 [N, H, W, 3] RGB, to `mu` and `log_var` of their posterior, float32 [N, D] each."""

    def decode(self, latents: Floats) -> Bytes:
        """Latents, float32 [N, D], to images, uint8 [N, H, W, 3] RGB."""


def close(backend: Backend) -> None:
    """Frees what a backend holds outside of Python, by its `close` if it has one; otherwise the end of the object does.

    No batch may be in it, and none may come.
    """
    if end := getattr(backend, "close", None):
        end()


@runtime_checkable
class EditingBackend(Backend, Protocol):
    """A backend with a third graph, which spares the way from the encoder to the host and back to the decoder."""

    def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
        """As `edit` of this module."""


def edit(backend: Backend, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
    """Encodes, adds and decodes, in one call where the backend has one.

    Args:
        backend: What computes.
        images: uint8 [N, H, W, 3] RGB.
        steps: What is added to mu, float32 [N, D].

    Returns:
        Edited images, uint8 [N, H, W, 3] RGB, and mu before the addition, float32 [N, D].
    """
    if isinstance(backend, EditingBackend):
        return backend.edit(images, steps)
    mu, _ = backend.encode(images)
    return backend.decode(mu + steps), mu


def overlaps(backend: Backend) -> int:
    """How many other batches a backend takes while it computes one; 0 where it doesn't say."""
    return int(getattr(backend, "overlaps", 0))


PRECISIONS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "int8"),
    "tensorrt-rtx": ("fp32", "fp16", "int8"),
}
"""The backends of this engine, and the precisions that each can compute in where the hardware has them.

ONNX Runtime computes fp16 on a GPU, the rest on the CPU; OpenVINO on the CPU; TensorRT on a GPU.
"""
OF_PLANS = ("tensorrt", "tensorrt-rtx")
"""Those that run plans, which are built for some GPUs and one version, and not the graphs themselves."""


def open_backend(bundle: Bundle, threads: int | None = None) -> Backend:
    """Opens the runtime that the bundle's manifest names; to serve it, use `engine.proof.opening.open_proven`.

    Args:
        bundle: A verified bundle.
        threads: Compute threads; None takes every core that this process may use.

    Raises:
        BundleError: When the manifest names a backend or a precision that this engine doesn't have.
        BackendError: When the backend's package isn't installed, this machine lacks units for the precision, or its
            plans were built for another GPU or another TensorRT.
    """
    manifest = bundle.manifest
    if manifest.backend in OF_PLANS:
        _require_device_of(manifest)
    return open_graphs(
        manifest.backend,
        manifest.precision,
        bundle.path / manifest.engine.encoder,
        bundle.path / manifest.engine.decoder,
        manifest.max_batch_size,
        split=manifest.engine.split,
        threads=threads,
    )


def open_graphs(
    backend: str,
    precision: str,
    encoder: Path,
    decoder: Path,
    max_batch_size: int,
    *,
    split: bool = False,
    threads: int | None = None,
) -> Backend:
    """Opens two graphs.

    Args:
        backend: A key of `PRECISIONS`.
        precision: One of its precisions.
        encoder: ONNX graph of the encoder; for those `OF_PLANS`, its plan.
        decoder: ONNX graph of the decoder; for those `OF_PLANS`, its plan.
        max_batch_size: Largest batch, images.
        split: As `engine.bundle.Engine` says.
        threads: Compute threads; None takes every core that this process may use.

    Raises:
        BundleError: When a graph, backend or precision isn't one that this engine has.
        BackendError: When the backend's package isn't installed, or this machine lacks units for the precision.
    """
    if backend not in PRECISIONS:
        raise BundleError(f"the bundle asks for the backend {backend!r}; this engine has: {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[backend]:
        raise BundleError(
            f"the bundle asks for {backend} in {precision!r}; this engine has: {', '.join(PRECISIONS[backend])}"
        )
    threads = threads or len(os.sched_getaffinity(0))
    # Only the runtime that is used is imported: a server needs no other.
    if backend == "openvino":
        from engine.backends.open_vino import OpenVinoBackend  # noqa: PLC0415

        return OpenVinoBackend(encoder, decoder, precision, max_batch_size, split=split, threads=threads)
    if backend in OF_PLANS:
        from engine.backends.tensor_rt import TensorRtBackend  # noqa: PLC0415

        return TensorRtBackend(encoder, decoder, max_batch_size, backend=backend)
    from engine.backends.onnx_runtime import OnnxRuntimeBackend  # noqa: PLC0415

    return OnnxRuntimeBackend(encoder, decoder, threads, precision)


def _require_device_of(manifest: Manifest) -> None:
    from engine.backends.tensor_rt import is_target, require_device  # noqa: PLC0415

    here, built = require_device(manifest.backend), manifest.tensorrt.get("device", {})
    if manifest.backend == "tensorrt-rtx":
        targets = built.get("compute_capabilities", [])
        fits = here["tensorrt-rtx"] == built.get("tensorrt-rtx") and is_target(here["compute_capability"], targets)
    else:
        fits = here == built
    if not fits:
        raise BackendError(
            f"the bundle's plans were built for {_device(built)}, this machine has {_device(here)}; rebuild them here "
            f"with: {_rebuild(manifest)}"
        )


def _rebuild(manifest: Manifest) -> str:
    return (
        "python -m export.build_engines --run RUN --out BUNDLE --force "
        f"--backend {manifest.backend} --precision {manifest.precision} --max-batch {manifest.max_batch_size}"
    )


def _device(values: object) -> str:
    if not isinstance(values, dict) or not values:
        return "something that the manifest does not name"
    return ", ".join(f"{name} {_words(value)}" for name, value in values.items())


def _words(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def warm_up(backend: Backend, manifest: Manifest) -> None:
    """Runs all graphs on batches of 1, 2, 4 ... max, so that no client pays for first calls.

    Raises:
        BundleError: When a graph's results don't have the shapes that the manifest promises.
    """
    for call in first_calls(backend, manifest):
        call()


def first_calls(backend: Backend, manifest: Manifest) -> Iterator[Callable[[], None]]:
    """The calls of `warm_up`, one per batch size, for those who have something to do in between."""
    for count in _batch_sizes(manifest.max_batch_size):
        yield partial(_call, backend, manifest, count)


def _call(backend: Backend, manifest: Manifest, count: int) -> None:
    size, dim = manifest.image_size, manifest.latent_dim
    mu, log_var = backend.encode(np.zeros((count, size, size, 3), np.uint8))
    images = backend.decode(np.zeros((count, dim), np.float32))
    edit(backend, np.zeros((count, size, size, 3), np.uint8), np.zeros((count, dim), np.float32))
    if mu.shape != (count, dim) or log_var.shape != (count, dim) or images.shape != (count, size, size, 3):
        raise BundleError(
            f"the graphs don't fit the manifest (image_size {size}, latent_dim {dim}): on {count} images "
            f"they gave mu {list(mu.shape)}, log_var {list(log_var.shape)}, images {list(images.shape)}"
        )


def _batch_sizes(largest: int) -> list[int]:
    sizes = [1]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return sizes if sizes[-1] == largest else [*sizes, largest]
