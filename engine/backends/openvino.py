"""OpenVINO on the CPU, in float32, bfloat16 or int8.

In int8 the quantised layers are those of the graph; what it leaves in float is computed in bfloat16 where the CPU has
units and OpenVINO kernels for it, which is faster, else in float32.

Each graph is compiled for one image, for a share of a full batch and of half of one, and for any count: known shapes
are faster.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino
import openvino.opset13 as opset

from engine.arrays import Array, Bytes, Floats
from engine.backends.base import Backend, Names, Options, require_names
from engine.errors import BackendError, BundleError

logger = logging.getLogger(__name__)

_FLOATS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend(Backend):
    """Encoder and decoder compiled by OpenVINO.

    The precision is "fp32", "bf16" or, for graphs that were quantised, "int8"; what leaves a graph has its own type.
    Batches beyond the largest are taken too. With `split` each thread computes a share of the batch alone; otherwise
    all compute the whole batch together.
    """

    def __init__(self, encoder: Path, decoder: Path, options: Options) -> None:
        self.check(options)
        core = _core()
        encoding = _read(core, encoder, (["images"], ["mu", "log_var"]))
        decoding = _read(core, decoder, (["latents"], ["images"]))
        models = (encoding, decoding, _join(encoding, decoding))
        try:
            self._encoder, self._decoder, self._editor = _compile(core, models, options, batches=1 + self.overlaps)
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO can't compile {encoder.name} and {decoder.name} in {options.precision} on this machine "
                f"({_last_line(error)}); take another --backend or --precision, for a bundle that is there already "
                "with: python -m export.retarget"
            ) from error
        self.together = options.together

    overlaps = 1
    """The shares of two batches queue up behind each other, and no thread waits for the other."""

    @classmethod
    def check(cls, options: Options) -> None:
        """Lets a precision pass that this CPU has units for; OpenVINO would emulate others, slowly."""
        found = _capabilities()
        if options.precision.upper() not in found:
            raise BackendError(
                f"this CPU has no units for {options.precision} (OpenVINO finds {', '.join(found)}); "
                "take --precision fp32, for a bundle that is there already with: python -m export.retarget"
            )

    def encode(self, images: Bytes) -> tuple[Floats, Floats]:
        """As `Backend.encode`."""
        mu, log_var = self._encoder.run(images)
        return mu, log_var

    def decode(self, latents: Floats) -> Bytes:
        """As `Backend.decode`."""
        (images,) = self._decoder.run(latents)
        return images

    def edit(self, images: Bytes, steps: Floats) -> tuple[Bytes, Floats]:
        """As `Backend.edit`, in one graph: each thread goes through its share of the batch, and waits for no other."""
        edited, mu = self._editor.run(images, steps)
        return edited, mu


def _compile(core: Any, models: Sequence[Any], options: Options, *, batches: int) -> "list[_Graph]":
    """Graphs in their precision; what int8 leaves in float in bf16, where CPU and OpenVINO have it.

    The CPU needs units for it, and OpenVINO kernels: on AMX, 2026.4 has none for int8 `Gemm`s.
    """

    def graphs(floats: str) -> "list[_Graph]":
        settings = {"INFERENCE_PRECISION_HINT": _FLOATS[floats], "INFERENCE_NUM_THREADS": options.threads}
        return [_Graph(core, model, settings, options, batches=batches) for model in models]

    if options.precision != "int8":
        return graphs(options.precision)
    if "BF16" in _capabilities():
        try:
            return graphs("bf16")
        except RuntimeError as error:
            logger.warning(
                "what int8 leaves in float is computed in fp32: OpenVINO has no bf16 for it (%s)", _last_line(error)
            )
    return graphs("fp32")


def _capabilities() -> list[str]:
    found: list[str] = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return found


@cache
def _core() -> Any:
    """The only one of this process, which is never freed.

    The thread that makes one handles its signals on a stack that OpenVINO frees with it. Of two that are freed in the
    order in which they were made, the second leaves the thread with the stack of the first, and the next signal, Ctrl-C
    for example, would end the process by SIGSEGV.
    """
    return openvino.Core()


class _Graph:
    """One graph in its compilations, which computes `batches` at the same time, with `split` each in parts at once."""

    def __init__(self, core: Any, model: Any, settings: dict[str, Any], options: Options, *, batches: int) -> None:
        self._shares = shares = options.threads if options.split else 1
        self._free: SimpleQueue[int] = SimpleQueue()  # sets of requests, by the first of each
        for batch in range(batches):
            self._free.put(batch * shares)
        # Threads are not pinned to cores: the server's own threads need those too.
        common = {**settings, "ENABLE_CPU_PINNING": False, "PERFORMANCE_HINT": "LATENCY"}
        spread = {**common, "NUM_STREAMS": shares}
        full = -(-options.max_batch_size // shares)
        requests = batches * shares
        self._single = _Compiled(core, model, 1, {**common, "NUM_STREAMS": 1}, requests)
        self._known = {size: _Compiled(core, model, size, spread, requests) for size in {full, -(-full // 2)}}
        self._any = _Compiled(core, model, None, spread, requests)

    def run(self, *batches: Array) -> list[Array]:
        """Computes a batch, one array [N, ...] per input; the results are the caller's. From any thread."""
        # OpenVINO takes no read-only memory; copies only that.
        inputs = [np.require(batch, requirements=["C", "W"]) for batch in batches]
        count = len(inputs[0])
        outputs = self._any.allocate(count)
        parts = min(self._shares, count)
        bounds = [count * part // parts for part in range(parts + 1)]
        first = self._free.get()
        with ExitStack() as started:  # waits for each, even when one fails: the set is free after that
            started.callback(self._free.put, first)
            for request, (start, stop) in enumerate(pairwise(bounds), first):
                compiled = self._single if count == 1 else self._known.get(stop - start, self._any)
                compiled.start(
                    request, [values[start:stop] for values in inputs], [values[start:stop] for values in outputs]
                )
                started.callback(compiled.wait, request)
        return outputs


class _Compiled:
    """A graph compiled for batches of `count` (None: of any size), with requests that run at the same time."""

    def __init__(self, core: Any, model: Any, count: int | None, settings: dict[str, Any], requests: int) -> None:
        model = model.clone()
        if count is not None:
            shapes = {value: value.partial_shape for value in model.inputs}
            for shape in shapes.values():
                shape[0] = count
            model.reshape(shapes)
        compiled = core.compile_model(model, "CPU", settings)
        self._requests = [compiled.create_infer_request() for _ in range(requests)]
        self._items = [
            (tuple(size.get_length() for size in list(output.partial_shape)[1:]), output.element_type.to_dtype())
            for output in compiled.outputs
        ]

    def allocate(self, count: int) -> list[Array]:
        return [np.empty((count, *shape), dtype) for shape, dtype in self._items]

    def start(self, request: int, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        # Shared memory: inputs are read where they lie, results written where they belong.
        for index, values in enumerate(inputs):
            self._requests[request].set_input_tensor(index, openvino.Tensor(values, shared_memory=True))
        for index, output in enumerate(outputs):
            self._requests[request].set_output_tensor(index, openvino.Tensor(output, shared_memory=True))
        self._requests[request].start_async()

    def wait(self, request: int) -> None:
        self._requests[request].wait()


def _join(encoder: Any, decoder: Any) -> Any:
    """Encoder and decoder with an addition in between: `images` and `steps` to `images` and `mu`."""
    encoder, decoder = encoder.clone(), decoder.clone()
    mu, latents = encoder.results[0], decoder.parameters[0]
    steps = opset.parameter(latents.partial_shape, latents.element_type, "steps")
    steps.output(0).set_names({"steps"})
    moved = opset.add(mu.input_value(0), steps).output(0)
    for use in list(latents.output(0).get_target_inputs()):
        use.replace_source_output(moved)
    return openvino.Model([decoder.results[0], mu], [encoder.parameters[0], steps], "edit")


def _read(core: Any, path: Path, names: Names) -> Any:
    if not path.is_file():
        raise BundleError(f"no ONNX graph at {path}")
    try:
        model = core.read_model(path)
        found = ([value.any_name for value in model.inputs], [value.any_name for value in model.outputs])
    except Exception as error:  # OpenVINO raises RuntimeError and its own types for a bad graph
        raise BundleError(f"OpenVINO can't open {path}: {_last_line(error)}") from error
    require_names(path, found, names)
    return model


def _last_line(error: Exception) -> str:
    """The reason; the lines before it are places in OpenVINO's source."""
    return str(error).strip().splitlines()[-1]
