"""TensorRT and TensorRT for RTX on an NVIDIA GPU: plans run through tensor addresses, a CUDA graph per batch bucket.

Both have one API under two names. TensorRT builds on the GPU that will serve; TensorRT for RTX builds anywhere, for
several kinds of GPU, and compiles for the one that it finds when a plan is opened.

A batch runs in its bucket as one CUDA graph: copy in, compute, copy out; so a call costs one launch and one wait. Every
bucket has its own execution context, since a captured graph keeps the addresses of its context's memory: about as much
device memory as the largest batch's activations, for each bucket.
"""

import importlib
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.arrays import Array, Bytes, Floats
from engine.backends.base import CUDA, Backend, Options, bucket_sizes, gpu_of, in_parts
from engine.backends.cuda import Cuda
from engine.backends.registry import BACKENDS
from engine.errors import BackendError, BundleError

logger = logging.getLogger(__name__)

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
"""The Python module of each backend of this kind."""
TARGETS = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX builds for. It has 7.5, too, but there no matrix products in FP32."""
DEFAULT_TARGETS = ("8.0", "8.6", "8.9", "12.0")
"""Those that it builds for when none is named; the last one stands for newer ones, too."""

_REMAKE = "make the plans again on this machine, with: python -m export.retarget BUNDLE --out BUNDLE2"
_DTYPES = {"UINT8": np.uint8, "FLOAT": np.float32}
_ENCODER = {"images": ("INPUT", "UINT8"), "mu": ("OUTPUT", "FLOAT"), "log_var": ("OUTPUT", "FLOAT")}
_DECODER = {"latents": ("INPUT", "FLOAT"), "images": ("OUTPUT", "UINT8")}
_EDITOR = {
    "images": ("INPUT", "UINT8"),
    "steps": ("INPUT", "FLOAT"),
    "edited": ("OUTPUT", "UINT8"),
    "mu": ("OUTPUT", "FLOAT"),
}


class TensorRtBackend(Backend):
    """Encoder and decoder as TensorRT plans on a GPU, and both as one for edits.

    Of the options, `backend` is a key of `MODULES`; larger batches than the largest are computed in parts. `edit` is a
    plan with inputs `images` and `steps` float32 [N, D] and outputs `edited` uint8 [N, H, W, 3] and `mu`; without it an
    edit is two launches, with the latents on the host in between.

    Raises:
        BackendError: When TensorRT, cuda-bindings, the driver or a GPU is missing, or CUDA reports an error.
    """

    def __init__(self, encoder: Path, decoder: Path, options: Options) -> None:
        self.check(options)
        tensorrt = load_tensorrt(options.backend)
        self._encoder = _Graph(tensorrt, encoder, _ENCODER, options)
        self._decoder = _Graph(tensorrt, decoder, _DECODER, options)
        self._editor = _Graph(tensorrt, options.edit, _EDITOR, options) if options.edit else None

    @classmethod
    def check(cls, options: Options) -> None:
        """As `require_device`."""
        require_device(options.backend, options.device)

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """As `Backend.encode`."""
        mu, log_var = self._encoder.run(images)
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """As `Backend.decode`."""
        (images,) = self._decoder.run(latents)
        return images

    def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
        """As `Backend.edit`."""
        if self._editor is None:
            return super().edit(images, steps)
        edited, mu = self._editor.run(images, steps)
        return edited, mu

    def close(self) -> None:
        """Frees the GPU; so does the end of the object's life. It can't compute any more."""
        for graph in (self._encoder, self._decoder, self._editor):
            if graph is not None:
                graph.close()


def require_device(backend: str = "tensorrt", device: str = CUDA) -> dict[str, str]:
    """TensorRT and a GPU of this machine, for a backend of `MODULES` and a device as `engine.backends.is_device` says.

    Returns:
        {"tensorrt": "8.6.0", "gpu": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0"}, the version under the
        backend's name.

    Raises:
        BackendError: When TensorRT, cuda-bindings, the NVIDIA driver or a GPU is missing, or it is a GPU that the
            backend is not for; says which.
    """
    # CUDA is asked before TensorRT makes anything: without a driver, TensorRT 8.6 crashes the process.
    version = str(load_tensorrt(backend).__version__)
    gpu = Cuda(gpu_of(device)).gpu()
    if backend == "tensorrt-rtx" and not is_target(gpu["compute_capability"], TARGETS):
        raise BackendError(
            f"TensorRT for RTX is for GPUs of compute capability {', '.join(TARGETS)} and newer, this machine has "
            f"{gpu['gpu']} with {gpu['compute_capability']}; take --backend tensorrt, for a bundle that is there "
            "already with: python -m export.retarget"
        )
    return {backend: version, **gpu}


def is_target(compute_capability: str, targets: Iterable[str]) -> bool:
    """Whether a plan of TensorRT for RTX for these targets runs on a GPU; that for 12.0 is for newer GPUs, too."""
    newer = float(compute_capability) >= float(DEFAULT_TARGETS[-1]) and DEFAULT_TARGETS[-1] in targets
    return newer or compute_capability in targets


def fits(built: Mapping[str, Any], here: Mapping[str, str]) -> bool:
    """Whether plans that the manifest says were built for `built` run on what `require_device` says is `here`."""
    backend = next(iter(here))
    capability = here["compute_capability"]
    if built.get(backend) != here[backend]:
        return False
    if backend == "tensorrt-rtx":
        return is_target(capability, built.get("compute_capabilities", []))
    compatibility = built.get("hardware_compatibility")
    if compatibility == "ampere-plus":
        return float(capability) >= 8.0
    same = ("compute_capability",) if compatibility == "same-compute-capability" else ("compute_capability", "gpu")
    return all(built.get(name) == here[name] for name in same)


def load_tensorrt(backend: str = "tensorrt") -> Any:
    """The module of a backend, a key of `MODULES`.

    Raises:
        BackendError: When it can't be imported.
    """
    try:
        return importlib.import_module(MODULES[backend])
    except ImportError as error:
        raise BackendError(
            f"the backend {backend} needs {BACKENDS[backend].title}, which can't be imported ({error}); "
            f"pip install 'dfc-vae[{backend}]'"
        ) from error


def make_logger(tensorrt: Any, say: Callable[[str], None]) -> Any:
    """The TensorRT logger: gives warnings and errors to `say`, each text once; `reason()` is why something failed.

    There is one, as TensorRT goes on with the first that it was given as long as anything made with it lives; from now
    on it talks to `say`.
    """
    log = _logger(tensorrt)
    log.say, log.said = say, {}
    return log


@cache
def _logger(tensorrt: Any) -> Any:
    class Logger(tensorrt.ILogger):  # type: ignore[misc]
        say: Callable[[str], None]
        said: dict[str, str]  # severities by text

        def log(self, severity: Any, text: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING") and text not in self.said:
                self.said[text] = severity.name
                self.say(f"TensorRT {severity.name.lower().replace('_', ' ')}: {text}")

        def reason(self) -> str:
            # The first error is the cause, those after it follow from it; what CUDA refuses comes as a warning.
            errors = [text for text, severity in self.said.items() if severity != "WARNING"]
            return next(iter([*errors, *reversed(self.said)]), "it gives no reason")

    return Logger()


def start(tensorrt: Any, part: str, log: Any) -> Any:
    """A `Builder` or `Runtime` of TensorRT; call `require_device` before.

    Raises:
        BackendError: When it doesn't start.
    """
    try:
        return getattr(tensorrt, part)(log)
    except TypeError as error:  # all that its Python binding says of a failure
        raise BackendError(f"TensorRT {tensorrt.__version__} can't start its {part}: {log.reason()}") from error


class _Buffer(NamedTuple):
    """A tensor's memory for the largest bucket: page-locked on the host, and on the device."""

    name: str
    host: Array
    device: int


class _Bucket(NamedTuple):
    """A batch size with its execution context and its CUDA graph, which needs the context's memory."""

    size: int
    context: Any
    graph: Any


class _Graph:
    """One plan with its stream, buffers and buckets; `tensors` maps names to mode and type, in order."""

    def __init__(self, tensorrt: Any, path: Path, tensors: dict[str, tuple[str, str]], options: Options) -> None:
        max_batch_size = options.max_batch_size
        self._cuda = Cuda(gpu_of(options.device))
        self._cuda.select()
        self._tensorrt = tensorrt
        self._path = path
        log = make_logger(tensorrt, logger.warning)
        self._runtime, self._engine = deserialize(tensorrt, path, log)
        _check_tensors(self._engine, path, tensors, max_batch_size)
        self._stream = self._cuda.call("cudaStreamCreateWithFlags", 1)  # does not wait for the legacy default stream
        self._owned: list[tuple[str, Any]] = [("cudaStreamDestroy", self._stream)]
        self._free = weakref.finalize(self, _free, self._cuda, self._stream, self._owned)
        sizes = bucket_sizes(max_batch_size)
        inputs = [name for name, (mode, _) in tensors.items() if mode == "INPUT"]
        contexts = {count: self._context(count, inputs) for count in sizes}
        buffers = [self._allocate(contexts[max_batch_size], name, kind) for name, (_, kind) in tensors.items()]
        self._inputs = [buffer for buffer in buffers if buffer.name in inputs]
        self._outputs = [buffer for buffer in buffers if buffer.name not in inputs]
        self._buckets = [self._prepare(count, contexts[count]) for count in sizes]

    def run(self, *batches: Array) -> Sequence[Array]:
        """Computes a batch, [N, ...] for each input; the results are the caller's.

        Raises:
            BackendError: When CUDA or TensorRT reports an error, or after `close`.
        """
        if not self._free.alive:
            raise BackendError(f"{self._path} was closed")
        self._cuda.select()
        return in_parts(self._run, self._buckets[-1].size, *batches)

    def close(self) -> None:
        """Frees all that it holds on the GPU, the contexts' memory and the engine included."""
        self._free()
        self._buckets = []
        self._engine = self._runtime = None

    def _run(self, *batches: Array) -> list[Array]:
        count = len(batches[0])
        bucket = next(bucket for bucket in self._buckets if bucket.size >= count)
        for buffer, batch in zip(self._inputs, batches, strict=True):
            np.copyto(buffer.host[:count], batch, casting="no")
        self._cuda.call("cudaGraphLaunch", bucket.graph, self._stream)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        return [output.host[:count].copy() for output in self._outputs]

    def _context(self, count: int, inputs: Sequence[str]) -> Any:
        context = self._engine.create_execution_context(*self._runtime_config())
        if context is None:
            raise BackendError(f"TensorRT has no memory left for {self._path} at batch {count}; lower --max-batch")
        # TensorRT 8.6 gives the profile to the first context only.
        if not context.set_optimization_profile_async(0, int(self._stream)):
            raise BackendError(f"{self._path} refuses its own profile; {_REMAKE}")
        self._cuda.call("cudaStreamSynchronize", self._stream)
        for name in inputs:
            item = tuple(self._engine.get_tensor_shape(name))[1:]
            if not context.set_input_shape(name, (count, *item)):
                raise BackendError(f"{self._path} refuses {count} images; {_REMAKE}")
        return context

    def _runtime_config(self) -> list[Any]:
        """TensorRT for RTX would compile kernels for a shape behind the first runs, which a CUDA graph never sees."""
        strategies = getattr(self._tensorrt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            return []
        settings = self._engine.create_runtime_config()
        settings.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return [settings]

    def _allocate(self, context: Any, name: str, kind: str) -> _Buffer:
        # The context knows the shape in full; in the engine's, sides that the graph computes are left open.
        host = self._cuda.pinned(tuple(context.get_tensor_shape(name)), _DTYPES[kind])
        self._owned.append(("cudaFreeHost", host.ctypes.data))
        device = int(self._cuda.call("cudaMalloc", host.nbytes))
        self._owned.append(("cudaFree", device))
        return _Buffer(name, host, device)

    def _prepare(self, count: int, context: Any) -> _Bucket:
        for buffer in (*self._inputs, *self._outputs):
            if not context.set_tensor_address(buffer.name, buffer.device):
                raise BackendError(f"{self._path}: TensorRT refuses the memory of {buffer.name}")
        self._enqueue(count, context)  # a context's first run sets itself up, which cannot be captured
        self._cuda.call("cudaStreamSynchronize", self._stream)
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue(count, context)
        finally:
            captured = self._cuda.call("cudaStreamEndCapture", self._stream)
        graph = self._cuda.call("cudaGraphInstantiate", captured, 0)
        self._cuda.call("cudaGraphDestroy", captured)
        self._owned.append(("cudaGraphExecDestroy", graph))
        return _Bucket(count, context, graph)

    def _enqueue(self, count: int, context: Any) -> None:
        for buffer in self._inputs:
            self._cuda.copy_in(buffer.device, buffer.host[:count], self._stream)
        if not context.execute_async_v3(int(self._stream)):
            raise BackendError(f"TensorRT failed to run {self._path} on {count} images; its log says why")
        for buffer in self._outputs:
            self._cuda.copy_out(buffer.host[:count], buffer.device, self._stream)


def _free(cuda: Cuda, stream: Any, owned: list[tuple[str, Any]]) -> None:
    for function, resource in [("cudaSetDevice", cuda.number), ("cudaStreamSynchronize", stream), *reversed(owned)]:
        try:
            cuda.call(function, resource)
        except BackendError as error:  # after a fault of the GPU every call fails; the rest goes with the process
            logger.warning("%s", error)


def deserialize(tensorrt: Any, path: Path, log: Any) -> tuple[Any, Any]:
    """A plan's runtime, which must live as long as the engine, and its engine.

    Raises:
        BundleError: When there is no plan, or it is damaged or of another TensorRT.
        BackendError: As `start`.
    """
    if not path.is_file():
        raise BundleError(f"no TensorRT plan at {path}; {_REMAKE}")
    runtime = start(tensorrt, "Runtime", log)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BundleError(f"TensorRT {tensorrt.__version__} can't open {path}: {log.reason()}; {_REMAKE}")
    return runtime, engine


def _check_tensors(engine: Any, path: Path, tensors: dict[str, tuple[str, str]], max_batch_size: int) -> None:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: (engine.get_tensor_mode(name).name, engine.get_tensor_dtype(name).name) for name in names}
    if found != tensors:
        raise BundleError(f"{path} has the tensors {found}; the engine needs {tensors}; {_REMAKE}")
    for name, (mode, _) in tensors.items():
        if mode == "INPUT":
            _, _, (largest, *_) = engine.get_tensor_profile_shape(name, 0)
            if largest < max_batch_size:
                raise BundleError(f"{path} takes up to {largest} images, not {max_batch_size}; {_REMAKE}")
