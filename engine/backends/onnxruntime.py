"""ONNX Runtime, on the CPU or an NVIDIA GPU: the device decides on its provider, and precision is in the graphs.

On a CPU the threads may compute a batch together, layer by layer, or each a share of it from end to end, so that none
waits for another in between. On a GPU a batch is computed in its bucket, whose input lies at a fixed place on the GPU:
cuDNN chooses its algorithms anew for every size that it meets, and the warm-up meets all buckets.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from engine.arrays import Array, Bytes, Floats
from engine.backends.base import CPU, CUDA, Backend, Options, bucket_sizes, gpu_of, in_parts, kind_of
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
        on_cpu = kind_of(options.device) == CPU
        self.overlaps = int(on_cpu)
        self._whole = _Graphs(encoder, decoder, options)
        self._most_shares = options.threads if options.split and on_cpu else 1
        self.together = on_cpu and options.threads > 1 and self._most_shares == 1
        if self._most_shares > 1:
            self._alone = _Graphs(encoder, decoder, replace(options, threads=1))
            self._pool = ThreadPoolExecutor(self._most_shares, "share")

    @classmethod
    def check(cls, options: Options) -> None:
        """Lets a device pass that this ONNX Runtime and this machine have."""
        if kind_of(options.device) == CUDA:
            _require_cuda(options.device)

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """As `Backend.encode`."""
        mu, log_var = self._compute(_Graphs.encode, images, least=_LEAST_ENCODED)
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """As `Backend.decode`."""
        (images,) = self._compute(_Graphs.decode, latents)
        return images

    def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
        """As `Backend.edit`: each thread takes its share of the batch from end to end."""
        edited, mu = self._compute(_Graphs.edit, images, steps)
        return edited, mu

    def _compute(self, function: Callable[..., Sequence[Array]], *batches: Array, least: int = 1) -> Sequence[Array]:
        """Computes a batch: in shares, if there would be `least` images for each thread."""
        count = len(batches[0])
        shares = min(self._most_shares, count)
        if shares <= 1 or count < least * self._most_shares:
            return function(self._whole, *batches)
        split = (np.array_split(batch, shares) for batch in batches)
        parts = self._pool.map(partial(function, self._alone), *split)
        return [np.concatenate(results) for results in zip(*parts, strict=True)]


class _Graphs:
    """The two graphs, opened in one way."""

    def __init__(self, encoder: Path, decoder: Path, options: Options) -> None:
        self._encoder = _open(encoder, options, ["images"], ["mu", "log_var"])
        self._decoder = _open(decoder, options, ["latents"], ["images"])

    def encode(self, images: Array) -> Sequence[Array]:
        return self._encoder(images)

    def decode(self, latents: Array) -> Sequence[Array]:
        return self._decoder(latents)

    def edit(self, images: Array, steps: Array) -> Sequence[Array]:
        mu, _ = self._encoder(images)
        return [*self._decoder(mu + steps), mu]


class _Bound:
    """A session whose input and outputs lie in the memory of a device, at a fixed place for each bucket."""

    def __init__(self, session: Any, memory: str, number: int, max_batch_size: int) -> None:
        self._session, self._device = session, (memory, number)
        (self._input,) = session.get_inputs()
        self._sizes = bucket_sizes(max_batch_size)
        self._buckets: dict[int, tuple[Array, Any, Any]] = {}

    def __call__(self, batch: Array) -> list[Array]:
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
        binding.bind_ortvalue_input(self._input.name, value)
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


def _session_options(threads: int, entries: Mapping[str, str]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads of the idle session would spin against those of the busy one: half the speed on few cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    options.log_severity_level = 3
    return options


def _open(
    path: Path, options: Options, inputs: Sequence[str], outputs: Sequence[str]
) -> Callable[[Array], Sequence[Array]]:
    """A function from a batch of the input to those of the outputs."""
    if not path.is_file():
        raise BundleError(f"no ONNX graph at {path}")
    kind, number = kind_of(options.device), gpu_of(options.device)
    on_gpu = kind == CUDA
    settings = {**_CUDA_OPTIONS, "device_id": str(number)} if on_gpu else {}
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            _session_options(options.threads, _CUDA_SESSION if on_gpu else {}),
            providers=[(PROVIDERS[kind], settings)],
            enable_fallback=0,  # by itself it would try the CPU next
        )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types for a bad graph
        if "CPU EP" in str(error):
            raise BackendError(
                f"ONNX Runtime would compute {path}, or a part of it, on the CPU instead of by {PROVIDERS[kind]} "
                f"({error}); take --device cpu"
            ) from error
        raise BundleError(f"ONNX Runtime can't open {path}: {error}") from error
    found = ([value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()])
    if found != (list(inputs), list(outputs)):
        raise BundleError(
            f"{path} has inputs {found[0]} and outputs {found[1]}; the engine needs inputs {list(inputs)} "
            f"and outputs {list(outputs)}"
        )
    if on_gpu:
        return _Bound(session, _GPU_MEMORY, number, options.max_batch_size)
    (name,) = inputs
    return lambda batch: session.run(list(outputs), {name: batch})
