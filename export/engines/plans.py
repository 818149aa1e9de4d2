"""Builds plans from ONNX graphs, with TensorRT 8.6 to 11 for the GPU at hand, with TensorRT for RTX for any it knows.

The precision of every layer stands in the graph, and is what TensorRT computes in (a strongly typed network). What 8.6
needs besides is in `export.engines.tensorrt_8`.
"""

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from engine.backends import BACKENDS, CUDA
from engine.backends.base import gpu_of
from engine.backends.cuda import Cuda
from engine.backends.tensorrt import (
    DEFAULT_TARGETS,
    deserialize,
    load_tensorrt,
    make_logger,
    require_device,
    start,
)
from engine.errors import BackendError
from engine.process.files import write_whole
from export.engines import tensorrt_8

Say = Callable[[str], None]

WORKSPACE_BYTES = 1 << 30
"""Memory that one layer may use while it computes, bytes: the largest layer here needs a fraction of it."""


@dataclass(frozen=True, kw_only=True)
class PlanBuilder:
    """Builds plans: tens of seconds to minutes with TensorRT, which times kernels; a second with TensorRT for RTX.

    A plan has one optimisation profile, for batches of 1 to `max_batch` images, tuned for `max_batch`: full batches
    decide the throughput, and small ones wait for launches and memory more than for arithmetic.

    Beside a plan for this machine's GPU lies what the engine inspector says of it (`layers_of`): which layer computes
    what, in which precision, by which kernel. TensorRT for RTX chooses kernels when a plan is opened.
    """

    max_batch: int  # largest batch, images
    # Measured times of kernels, read if it is there, and written: a second build takes seconds. One file serves any
    # number of graphs; TensorRT itself knows which entries are for this GPU and version, and TensorRT for RTX leaves it
    # alone.
    timing_cache: Path
    say: Say  # takes warnings and errors of TensorRT, and the progress
    compute_capabilities: Sequence[str] = ()  # that TensorRT for RTX builds for; none: `DEFAULT_TARGETS`
    # Which GPUs a plan of TensorRT is for, beside those of the name of the one that builds it: TensorRT's own word, in
    # small letters and with dashes.
    compatibility: str = "none"
    tactics: Sequence[str] = ()  # names of the only sources of kernels that TensorRT may use; none: all

    def build(self, graph: Path, plan: Path, *, backend: str = "tensorrt", device: str = CUDA) -> dict[str, Any]:
        """Builds one plan.

        Args:
            graph: An FP32 graph, its FP16 form, or one with quantisation (Q/DQ).
            plan: File to write.
            backend: "tensorrt", for a GPU of this machine, or "tensorrt-rtx", which needs neither GPU nor driver.
            device: The GPU that "tensorrt" builds on and for.

        Returns:
            Settings of the build, for the manifest.

        Raises:
            BackendError: TensorRT, its driver or a GPU is missing, or TensorRT refuses the graph; says which node and
                why.
        """
        stop = Event()
        # A signal raises in the main thread, and TensorRT swallows what is raised in a callback.
        with ThreadPoolExecutor(1) as pool:
            try:
                return pool.submit(self._build, graph, plan, backend, device, stop).result()
            finally:
                stop.set()

    def _build(self, graph: Path, plan: Path, backend: str, device: str, stop: Event) -> dict[str, Any]:
        where = self._select(backend, device)
        trt = load_tensorrt(backend)
        what = f"{BACKENDS[backend].title} {trt.__version__}"
        log = make_logger(trt, self.say)
        builder = start(trt, "Builder", log)
        network, typed = _network(trt, builder)
        parser = _parse(trt, network, log, graph, what)
        config, settings = self._configure(trt, builder, network, typed=typed)
        if backend == "tensorrt":
            settings |= self._configure_for_this_gpu(trt, config, stop)
        elif self.compute_capabilities:
            _set_targets(trt, config, self.compute_capabilities)

        self.say(f"building {plan.name} with {what} {where} ({network.num_layers} layers)")
        began = time.perf_counter()
        built = builder.build_serialized_network(network, config)
        if built is None:
            raise BackendError(f"{what} can't build {graph.name}: {log.reason()}")
        del parser  # until here the network's weights were in its memory
        seconds = time.perf_counter() - began
        content = bytes(memoryview(built))
        plan.write_bytes(content)
        if backend == "tensorrt":
            layers_of(plan).write_text(_inspect(trt, log, plan))
            write_whole(self.timing_cache, memoryview(config.get_timing_cache().serialize()))
        self.say(f"built {plan.name}: {len(content) / 1e6:.1f} MB in {seconds:.0f} s")
        return {"graph": graph.name, **settings, "layers": int(network.num_layers), "seconds": round(seconds, 1)}

    def _select(self, backend: str, device: str) -> str:
        """Makes the GPU that is built on the one that CUDA works with. Returns what is built for, for a person."""
        if backend == "tensorrt-rtx":
            return f"for compute capability {', '.join(self.compute_capabilities or DEFAULT_TARGETS)}"
        gpu = require_device(backend, device)["gpu"]
        Cuda(gpu_of(device)).select()
        return f"on {gpu}"

    def _configure(self, trt: Any, builder: Any, network: Any, *, typed: bool) -> tuple[Any, dict[str, Any]]:
        """The builder's configuration, as far as it is the same for every backend, and what the manifest says of it."""
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        if self.tactics:
            config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, name)) for name in self.tactics))
        config.clear_flag(trt.BuilderFlag.TF32)  # what is FP32 is meant so, and the factors of TF32 have ten bits
        flags = ["no TF32"]
        if not typed:
            flags += tensorrt_8.allow_precisions(trt, config, network)
            tensorrt_8.share_profile(trt, config)
        profile = _add_profile(builder, config, network, self.max_batch)
        settings = {"strongly_typed": typed, "flags": flags, "profile": profile, "workspace_bytes": WORKSPACE_BYTES}
        return config, settings

    def _configure_for_this_gpu(self, trt: Any, config: Any, stop: Event) -> dict[str, Any]:
        """What only TensorRT needs, which times kernels on the GPU at hand, for minutes unless it is to stop."""
        _set_compatibility(trt, config, self.compatibility)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = _make_monitor(trt, self.say, stop)
        known = _load_timing_cache(config, self.timing_cache, self.say)
        return {"timing_cache": "read" if known else "new"}


def layers_of(plan: Path) -> Path:
    """Where the layers of a plan are described, JSON: encoder.fp16.plan, encoder.fp16.layers.json."""
    return plan.with_suffix(".layers.json")


def _network(trt: Any, builder: Any) -> tuple[Any, bool]:
    """An empty network, and whether it is strongly typed."""
    names = trt.NetworkDefinitionCreationFlag.__members__
    wanted = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in names]
    flags = sum(1 << int(names[name]) for name in wanted)
    return builder.create_network(flags), "STRONGLY_TYPED" in wanted


def _parse(trt: Any, network: Any, log: Any, graph: Path, what: str) -> Any:
    """Fills the network; returns the parser, which must live as long as the network."""
    parser = trt.OnnxParser(network, log)
    if parser.parse(graph.read_bytes()):
        return parser
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = "; ".join(map(_refusal, found)) or log.reason()
    raise BackendError(f"{what} can't read {graph.name}: {reasons}")


def _refusal(error: Any) -> str:
    """Which node is refused, and by which rule, in one line."""
    where = f"node {error.node()}"
    if hasattr(error, "node_name"):  # TensorRT 8.6 only counts nodes
        where = f"{error.node_operator()} {error.node_name()}".strip()
    lines = str(error.desc()).splitlines()
    # Without a GPU each refusal also says that CUDA has no driver; and all say where in TensorRT's own source.
    rule = " ".join(line.strip() for line in lines if not line.startswith("Invalid Node") and "CudaError" not in line)
    rule = re.sub(r" In \w+ at /[^\s)]+", "", rule)
    if rule == "false":  # a check of the parser's that has no words
        rule = f"{error.func()} fails"
    return f"{where}: {rule}" if where else rule


def _set_targets(trt: Any, config: Any, compute_capabilities: Sequence[str]) -> None:
    config.num_compute_capabilities = len(compute_capabilities)
    for index, each in enumerate(compute_capabilities):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{each.replace('.', '')}"), index):
            raise BackendError(f"TensorRT for RTX {trt.__version__} refuses compute capability {each}")


def _set_compatibility(trt: Any, config: Any, compatibility: str) -> None:
    level = trt.HardwareCompatibilityLevel.__members__.get(compatibility.upper().replace("-", "_"))
    if level is None:
        raise BackendError(f"TensorRT {trt.__version__} has no hardware compatibility {compatibility}; newer ones have")
    config.hardware_compatibility_level = level


def _inspect(trt: Any, log: Any, plan: Path) -> str:
    """What the engine inspector says of a plan, JSON."""
    _runtime, engine = deserialize(trt, plan, log)
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _add_profile(builder: Any, config: Any, network: Any, max_batch: int) -> dict[str, int]:
    """Adds the profile; returns its least, best and largest batch."""
    counts = {"min": 1, "opt": max_batch, "max": max_batch}
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        profile.set_shape(value.name, *((count, *tuple(value.shape)[1:]) for count in counts.values()))
    config.add_optimization_profile(profile)
    return counts


def _make_monitor(trt: Any, say: Say, stop: Event) -> Any:
    """A progress monitor: a line for each step of the outermost phases; ends the build when it is to stop."""
    outermost: dict[str, int] = {}  # their numbers of steps

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if not parent:
                outermost[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in outermost:
                say(f"{phase}: {step + 1} of {outermost[phase]}")
            return not stop.is_set()

        def phase_finish(self, phase: str) -> None:
            outermost.pop(phase, None)

    return Monitor()


def _load_timing_cache(config: Any, path: Path, say: Say) -> bool:
    """Gives the builder the cache at `path`, or an empty one; returns whether there was one that fits."""
    if path.is_file():
        cache = config.create_timing_cache(path.read_bytes())
        if cache is not None and config.set_timing_cache(cache, False):
            return True
        say(f"{path} is of another GPU or TensorRT, or damaged; its kernels are timed anew")
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return False
