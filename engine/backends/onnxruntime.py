"""ONNX Runtime, on the CPU or an NVIDIA GPU: the device decides on its provider, and precision is in the graphs.

On a CPU the threads may compute a batch together, layer by layer, or each a share of it from end to end, so that none
waits for another in between. On a GPU a batch is computed in its bucket, whose input lies at a fixed place on the GPU:
cuDNN chooses its algorithms anew for every size that it meets, and the warm-up meets all buckets.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from engine.arrays import Array, Bytes, Floats
from engine.backends.base import CPU, CUDA, Backend, Names, Options, bucket_sizes, gpu_of, in_parts, require_names
from engine.backends.cuda import Cuda
from engine.errors import BackendError, BundleError

PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider"}
"""By kind of device."""

# Without it, nodes that have no kernel for the GPU would be computed on the CPU, and nobody told.
_CUDA_SESSION = {"session.disable_cpu_ep_fallback": "1"}
_GPU_MEMORY = "cuda"
_CUDA_OPTIONS = {
    # The default tries every algorithm of cuDNN for each batch size.
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "0",  # what is FP32 is meant so, and the factors of TF32 have ten bits
    "arena_extend_strategy": "kSameAsRequested",
}

# Encoding fewer takes less time than handing them to a thread and its results back, beside all that a server does.
_LEAST_ENCODED = 12


class OnnxRuntimeBackend(Backend):
    """Encoder and decoder as ONNX Runtime sessions.

    Of the options it takes the device, the threads, on a CPU whether to split batches, and on a GPU the largest batch:
    larger ones are computed in parts of that size. What is FP16 in a graph is computed as FP32 on the CPU. With `split`
    each thread computes a share of the batch alone, and all of them an image that comes by itself, in sessions of its
    own; otherwise all compute the whole batch together.
    """

    def __init__(self, encoder: Path, decoder: Path, options: Options) -> None:
        self.check(options)
        on_cpu = options.device == CPU
        self.overlaps = int(on_cpu)
        self._encoder = _open(encoder, options, (["images"], ["mu", "log_var"]))
        self._decoder = _open(decoder, options, (["latents"], ["images"]))
        self._shares = options.threads if options.split and on_cpu else 1
        self.together = options.together
        if self._shares > 1:
            self._alone = OnnxRuntimeBackend(encoder, decoder, replace(options, threads=1))
            self._pool = ThreadPoolExecutor(self._shares, "share")

    @classmethod
    def check(cls, options: Options) -> None:
        """Lets a device pass that this ONNX Runtime and this machine have."""
        if options.device != CPU:
            _require_cuda(options.device)

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """As `Backend.encode`."""
        shared = self._is_shared(images, least=_LEAST_ENCODED)
        mu, log_var = self._in_shares(self._alone._encoder, images) if shared else self._encoder(images)
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """As `Backend.decode`."""
        shared = self._is_shared(latents)
        (images,) = self._in_shares(self._alone._decoder, latents) if shared else self._decoder(latents)
        return images

    def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
        """As `Backend.edit`: each thread takes its share of the batch from end to end."""
        if self._is_shared(images):
            edited, mu = self._in_shares(self._alone.edit, images, steps)
        else:
            mu, _ = self._encoder(images)
            (edited,) = self._decoder(mu + steps)
        return edited, mu

    def _is_shared(self, batch: Array, least: int = 1) -> bool:
        """Whether each thread computes a share of a batch: there must be `least` images for each of several."""
        return self._shares > 1 and len(batch) >= least * self._shares

    def _in_shares(self, function: Callable[..., Sequence[Array]], *batches: Array) -> Sequence[Array]:
        split = (np.array_split(batch, self._shares) for batch in batches)
        return [np.concatenate(results) for results in zip(*self._pool.map(function, *split), strict=True)]


class _Bound:
    """A session whose input and outputs lie in the memory of a device, at a fixed place for each bucket."""

    def __init__(self, session: Any, options: Options) -> None:
        self._session, self._device = session, (_GPU_MEMORY, gpu_of(options.device))
        self._sizes = bucket_sizes(options.max_batch_size)
        self._buckets: dict[int, tuple[Array, Any, Any]] = {}

    def __call__(self, batch: Array) -> Sequence[Array]:
        """Computes a batch [N, ...]; the results are the caller's."""
        return in_parts(self._run, self._sizes[-1], batch)

    def _run(self, batch: Array) -> list[Array]:
        count = len(batch)
        size = next(size for size in self._sizes if size >= count)
        if size not in self._buckets:
            self._buckets[size] = self._bind(size, batch)
        rows, value, binding = self._buckets[size]
        rows[:count] = batch
        value.update_inplace(rows)
        self._session.run_with_iobinding(binding)
        return [result[:count].copy() for result in binding.copy_outputs_to_cpu()]  # in host memory it is no copy

    def _bind(self, size: int, batch: Array) -> tuple[Array, Any, Any]:
        """Rows of a bucket on the host, the same on the device, and what binds these to the session."""
        rows = np.zeros((size, *batch.shape[1:]), batch.dtype)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(rows.copy(), *self._device)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._session.get_inputs()[0].name, value)
        for output in self._session.get_outputs():
            binding.bind_output(output.name, *self._device)
        return rows, value, binding


def _require_cuda(device: str) -> None:
    name = PROVIDERS[CUDA]
    if name not in (found := onnxruntime.get_available_providers()):
        raise BackendError(
            f"this build of ONNX Runtime {onnxruntime.__version__} has no {name} for NVIDIA GPUs (it has "
            f"{', '.join(found)}); pip uninstall onnxruntime, then pip install 'dfc-vae[gpu]'; or take --device cpu"
        )
    Cuda(gpu_of(device))  # which a proof is bound to
    missing = _load_libraries()
    try:
        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", gpu_of(device))
    except Exception as error:  # ONNX Runtime has a type for each way of failing
        reason = missing or _reason(error)
        raise BackendError(
            f"ONNX Runtime can't use the GPU {device} ({reason}); see what nvidia-smi says, or take --device cpu"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error; of one of CUDA, what stands between the places in ONNX Runtime's source."""
    line = str(error).partition("\n")[0]
    return line[line.find("CUDA failure") :].partition(" ;")[0] if "CUDA failure" in line else line


@cache
def _load_libraries() -> str:
    """Loads CUDA and cuDNN from the wheels that the extra brings, once a process; returns what it could not load."""
    # The server's stdout is for the line that says where it serves.
    with redirect_stdout(io.StringIO()) as said:
        onnxruntime.preload_dlls()
    missing = [line.split(": ")[0] for line in said.getvalue().splitlines() if line.startswith("Failed to load ")]
    return ", ".join(missing)


def _open(path: Path, options: Options, names: Names) -> Callable[[Array], Sequence[Array]]:
    """A function from a batch of the input to those of the outputs."""
    if not path.is_file():
        raise BundleError(f"no ONNX graph at {path}")
    on_gpu = options.device != CPU
    provider = PROVIDERS[CUDA if on_gpu else CPU]
    of_provider = {**_CUDA_OPTIONS, "device_id": str(gpu_of(options.device))} if on_gpu else {}
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
    settings.log_severity_level = 3
    # Threads of the idle session would spin against those of the busy one: half the speed on few cores.
    entries = {"session.intra_op.allow_spinning": "0", **(_CUDA_SESSION if on_gpu else {})}
    for name, value in entries.items():
        settings.add_session_config_entry(name, value)
    try:
        # Without fallback: by itself it would try the CPU next.
        providers = [(provider, of_provider)]
        session = onnxruntime.InferenceSession(str(path), settings, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types for a bad graph
        if "CPU EP" in str(error):
            raise BackendError(
                f"ONNX Runtime would compute {path}, or a part of it, on the CPU instead of by {provider} "
                f"({error}); take --device cpu"
            ) from error
        raise BundleError(f"ONNX Runtime can't open {path}: {error}") from error
    found = ([value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()])
    require_names(path, found, names)
    if on_gpu:
        return _Bound(session, options)
    (given,), results = names
    return lambda batch: session.run(results, {given: batch})
