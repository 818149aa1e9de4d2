"""Stand-ins for TensorRT and the CUDA runtime, for tests on machines without a GPU.

Only what needs a device is stood in for. CUDA: device memory is plain memory, and a stream does its work when it is
waited for, not before. TensorRT: the parser reads real ONNX and refuses what the real one refuses of our graphs, a plan
is the graph with a header, and a context runs it by ONNX Runtime. Both record what they were asked to do.
"""

import ctypes
import json
import sys
import threading
import weakref
from collections.abc import Callable
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

SUCCESS, OUT_OF_MEMORY, INSUFFICIENT_DRIVER = 0, 2, 35
_HEADER = b"\0onnx\0"


class Cuda(ModuleType):
    """The module `cuda.bindings.runtime`; `failing` maps functions to the error code that they return."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, gpus: int = 1, compute_capability: str = "9.0") -> None:
        super().__init__("cuda.bindings.runtime")
        self.compute_capability = compute_capability
        self.__spec__ = ModuleSpec(self.__name__, None)  # libraries look whether the module is installed
        self.gpus = gpus
        self._thread = threading.local()
        self._gpu_of: dict[int, int] = {}
        self.failing: dict[str, int] = {}
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.queued: dict[int, list[Callable[[], None]]] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not (name.startswith("cuda") and callable(value)):
            return value

        def checked(*arguments: Any) -> Any:
            self.calls.append(name)
            code = self.failing.get(name, SUCCESS)
            return (code, None) if code else value(*arguments)

        return checked

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        assert self._gpu_of[stream] == self.gpu, "the thread works on another GPU than that of the stream"
        self.capturing.get(stream, self.queued[stream]).append(work)

    @property
    def gpu(self) -> int:
        """The GPU that this thread works on."""
        return int(getattr(self._thread, "gpu", 0))

    def view(self, address: int, size: int) -> Any:
        """The bytes at an address, which must lie within one allocation."""
        for start, block in self.memory.items():
            if start <= address and address + size <= start + len(block):
                return (ctypes.c_uint8 * size).from_address(address)
        raise AssertionError(f"{size} bytes at {address:#x} were never allocated")

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return SUCCESS, {INSUFFICIENT_DRIVER: b"CUDA driver version is insufficient"}.get(error, b"out of memory")

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return SUCCESS, self.gpus

    def cudaSetDevice(self, device: int) -> tuple[int]:
        assert device < self.gpus
        self._thread.gpu = device
        return (SUCCESS,)

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return SUCCESS, 13000

    def cudaGetDeviceProperties(self, _: int) -> tuple[int, Any]:
        major, minor = map(int, self.compute_capability.split("."))
        return SUCCESS, SimpleNamespace(name=b"NVIDIA Stand-In\0\0", major=major, minor=minor)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        return self._allocate(size)

    def cudaHostAlloc(self, size: int, _: int) -> tuple[int, int]:
        return self._allocate(size)

    def _allocate(self, size: int) -> tuple[int, int]:
        block = (ctypes.c_uint8 * size)(*([0xA5] * min(size, 64)))
        self.memory[ctypes.addressof(block)] = block
        return SUCCESS, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (SUCCESS,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, size: int, _: int, stream: int) -> tuple[int]:
        def copy() -> None:
            ctypes.memmove(self.view(target, size), self.view(source, size), size)

        self.enqueue(stream, copy)
        return (SUCCESS,)

    def cudaStreamCreateWithFlags(self, _: int) -> tuple[int, int]:
        stream = 1000 + len(self.queued)
        self.queued[stream] = []
        self._gpu_of[stream] = self.gpu
        return SUCCESS, stream

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        del self.queued[stream]
        return (SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        while self.queued[stream]:
            self.queued[stream].pop(0)()
        return (SUCCESS,)

    def cudaStreamBeginCapture(self, stream: int, _: int) -> tuple[int]:
        self.capturing[stream] = []
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, list[Callable[[], None]]]:
        return SUCCESS, self.capturing.pop(stream)

    def cudaGraphInstantiate(self, captured: list[Callable[[], None]], _: int) -> tuple[int, int]:
        graph = 5000 + len(self.graphs)
        self.graphs[graph] = list(captured)
        return SUCCESS, graph

    def cudaGraphDestroy(self, captured: list[Callable[[], None]]) -> tuple[int]:
        captured.clear()
        return (SUCCESS,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        for work in self.graphs[graph]:
            self.enqueue(stream, work)
        return (SUCCESS,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int]:
        self.graphs[graph] = []
        return (SUCCESS,)


class DataType(IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, INT64 = range(7)


_TYPES = {
    1: DataType.FLOAT,
    10: DataType.HALF,
    3: DataType.INT8,
    7: DataType.INT64,
    9: DataType.BOOL,
    2: DataType.UINT8,
}
_FLAGS = {
    "8.6.0": ("FP16", "INT8", "TF32", "PREFER_PRECISION_CONSTRAINTS"),
    "10.3.0": ("FP16", "INT8", "TF32", "PREFER_PRECISION_CONSTRAINTS"),
    "11.1.0": ("TF32",),
    "1.7.1": ("TF32",),
}


def _enum(name: str, members: Any) -> Any:
    return IntEnum(name, members)


class TensorRt(ModuleType):
    """The module `tensorrt` in a version, or that of TensorRT for RTX; what a build set is in `configs`."""

    def __init__(self, version: str, cuda: Cuda, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(self.__name__, None)
        self.__version__ = version
        self.cuda = cuda
        self.configs: list[Any] = []
        rtx = name != "tensorrt"
        major = 11 if rtx else int(version.partition(".")[0])
        creation = {8: {"EXPLICIT_BATCH": 0}, 10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 11: {"STRONGLY_TYPED": 1}}
        self.DataType = DataType
        self.NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", creation[major])
        self.BuilderFlag = _enum("BuilderFlag", _FLAGS[version])
        self.MemoryPoolType = _enum("MemoryPoolType", ["WORKSPACE"])
        sources = ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
        self.TacticSource = _enum("TacticSource", ["CUBLAS", "CUDNN", *sources] if major < 10 else sources)
        self.PreviewFeature = _enum("PreviewFeature", ["PROFILE_SHARING_0806"] if major < 10 else ["OTHER"])
        self.LayerType = _enum("LayerType", ["QUANTIZE", "CAST", "OTHER"])
        self.TensorIOMode = _enum("TensorIOMode", ["INPUT", "OUTPUT"])
        self.Severity = _enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
        levels = ["NONE", "AMPERE_PLUS"] if major < 10 else ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"]
        self.HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel", levels)
        self.ProfilingVerbosity = _enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"])
        self.LayerInformationFormat = _enum("LayerInformationFormat", ["ONELINE", "JSON"])
        self.ILogger = type("ILogger", (), {})
        if major >= 10:
            self.IProgressMonitor = type("IProgressMonitor", (), {})
        self.Builder = lambda log: _Builder(self, log)
        self.OnnxParser = lambda network, log: _Parser(self, network, log)
        self.Runtime = lambda log: _Runtime(self, log)
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = _enum("Strategy", ["LAZY", "EAGER", "NONE"])
        self.contexts: weakref.WeakSet[_Context] = weakref.WeakSet()


class _Builder:
    def __init__(self, trt: TensorRt, log: Any) -> None:
        self.trt, self.log = trt, log

    def create_network(self, flags: int) -> Any:
        members = self.trt.NetworkDefinitionCreationFlag.__members__
        typed = "STRONGLY_TYPED" in members and bool(flags & 1 << int(members["STRONGLY_TYPED"]))
        return SimpleNamespace(typed=typed, flags=flags, layers=[], inputs=[], model=None)

    def create_builder_config(self) -> Any:
        config = _Config(self.trt)
        self.trt.configs.append(config)
        return config

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *shape: shapes.update({name: shape}))

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        assert network.weights() is not None, "the weights are gone with the parser"
        config.network = network
        self.log.log(self.trt.Severity.WARNING, "a warning of the builder")
        self.log.log(self.trt.Severity.WARNING, "a warning of the builder")
        self.log.log(self.trt.Severity.VERBOSE, "one of thousands of lines")
        half = any(layer.get_output(0).dtype == DataType.HALF for layer in network.layers)
        allowed = network.typed or self.trt.BuilderFlag["FP16"] in config.flags
        forbidden = {"FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"} & {flag.name for flag in config.flags}
        if (half and not allowed) or (network.typed and forbidden):
            self.log.log(self.trt.Severity.ERROR, "Error Code 4: precision flags do not fit the network")
            return None
        if monitor := config.progress_monitor:
            monitor.phase_start("Building Engine", None, 2)
            monitor.phase_start("Tactics", "Building Engine", 1)
            monitor.step_complete("Tactics", 0)
            monitor.phase_finish("Tactics")
            monitor.step_complete("Building Engine", 0)
            monitor.step_complete("Building Engine", 1)
            monitor.phase_finish("Building Engine")
        if config.cache is not None:
            config.cache.content = f"cache of {self.trt.__version__}".encode()
        (profile,) = config.profiles
        detailed = config.profiling_verbosity is self.trt.ProfilingVerbosity["DETAILED"]
        layers = [{"Name": layer.name, "Precision": layer.get_output(0).dtype.name} for layer in network.layers]
        header = {"version": self.trt.__version__, "profile": profile.shapes, "layers": layers if detailed else []}
        graph: bytes = network.model.SerializeToString()
        return json.dumps(header).encode() + _HEADER + graph


class _Config:
    def __init__(self, trt: TensorRt) -> None:
        self.flags = {trt.BuilderFlag["TF32"]}
        self.trt = trt
        self.pools: dict[Any, int] = {}
        self.features: dict[Any, bool] = {}
        self.profiles: list[Any] = []
        self.tactic_sources = -1
        self.progress_monitor: Any = None
        self.profiling_verbosity: Any = None
        self.hardware_compatibility_level: Any = None
        self.cache: Any = None
        self.set_flag = self.flags.add
        self.clear_flag = self.flags.discard
        self.set_memory_pool_limit = self.pools.__setitem__
        self.set_preview_feature = self.features.__setitem__
        self.get_preview_feature = lambda feature: self.features.get(feature, False)
        self.add_optimization_profile = self.profiles.append
        self.get_timing_cache = lambda: self.cache

    def set_tactic_sources(self, sources: int) -> None:
        self.tactic_sources = sources

    def create_timing_cache(self, content: bytes) -> Any:
        cache = SimpleNamespace(content=content)
        cache.serialize = lambda: memoryview(cache.content)
        return cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        fits = cache.content in (b"", f"cache of {self.trt.__version__}".encode())
        self.cache = cache if fits else self.cache
        return fits


class _Parser:
    def __init__(self, trt: TensorRt, network: Any, log: Any) -> None:
        self.trt, self.network, self.log = trt, network, log
        self.errors: list[Any] = []

    def get_error(self, index: int) -> Any:
        return self.errors[index]

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def parse(self, content: bytes) -> bool:
        try:
            model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
        except Exception:
            self._refuse(0, "", "", "Failed to parse ONNX model")
            return False
        graph, network = model.graph, self.network
        values = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
        doors = {value.name for value in (*graph.input, *graph.output)}
        for index, node in enumerate(graph.node):
            for name in (*node.input, *node.output):
                byte = name in values and values[name].elem_type == onnx.TensorProto.UINT8
                if byte and not (name in doors and node.op_type == "Cast"):
                    self._refuse(index, node.name, node.op_type, "UINT8 is for casts at inputs and outputs only")
                    return False
            network.layers.append(self._layer(node, values))
        network.weights = weakref.ref(self)  # the real network's weights are in the parser's memory
        network.model, network.num_layers, network.num_inputs = model, len(network.layers), len(graph.input)
        network.get_layer = network.layers.__getitem__
        network.get_input = lambda index: SimpleNamespace(
            name=graph.input[index].name, shape=_shape(values[graph.input[index].name])
        )
        return True

    def _layer(self, node: onnx.NodeProto, values: dict[str, Any]) -> Any:
        dtypes = [_TYPES.get(values[name].elem_type, DataType.FLOAT) for name in node.output]
        kinds = {"QuantizeLinear": "QUANTIZE", "Cast": "CAST"}
        output_types: dict[int, Any] = {}
        return SimpleNamespace(
            name=node.name,
            type=self.trt.LayerType[kinds.get(node.op_type, "OTHER")],
            num_outputs=len(dtypes),
            get_output=lambda index: SimpleNamespace(dtype=dtypes[index]),
            precision=None,
            output_types=output_types,
            set_output_type=output_types.__setitem__,
        )

    def _refuse(self, index: int, name: str, operator: str, text: str) -> None:
        error = SimpleNamespace(node=lambda: index, desc=lambda: text)
        if not self.trt.__version__.startswith("8."):
            error.node_name, error.node_operator = (lambda: name), (lambda: operator)
        self.errors.append(error)


class _Runtime:
    def __init__(self, trt: TensorRt, log: Any) -> None:
        assert trt.cuda.gpus, "the real one crashes the process here"
        self.trt, self.log = trt, log

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        header, found, graph = content.partition(_HEADER)
        if not found or json.loads(header)["version"] != self.trt.__version__:
            self.log.log(self.trt.Severity.ERROR, "the plan was serialized by another version")
            return None
        return _Engine(self.trt, json.loads(header), graph)


class _Engine:
    def __init__(self, trt: TensorRt, header: dict[str, Any], content: bytes) -> None:
        self.trt, self.profile, self.layers = trt, header["profile"], header["layers"]
        self.alone = True  # without a context
        graph = onnx.load_from_string(content).graph
        self.inputs = {value.name: value.type.tensor_type for value in graph.input}
        self.outputs = {value.name: value.type.tensor_type for value in graph.output}
        self.names = [*self.outputs, *self.inputs]  # in an order of its own
        self.tensors = {**self.inputs, **self.outputs}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.num_io_tensors = len(self.names)
        self.get_tensor_name = self.names.__getitem__

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode["INPUT" if name in self.inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self.tensors[name].elem_type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _shape(self.tensors[name])

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        assert index == 0
        return self.profile[name]

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": self.layers}))

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(dynamic_shapes_kernel_specialization_strategy="LAZY")

    def create_execution_context(self, settings: Any = None) -> Any:
        context = _Context(self)
        context.settings = settings
        context.has_profile = self.alone
        self.alone = False
        self.trt.contexts.add(context)
        return context


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.cuda = engine, engine.trt.cuda
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.ran = False
        self.has_profile = False
        self.settings: Any = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        def choose() -> None:
            self.has_profile = index == 0

        self.cuda.enqueue(stream, choose)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.has_profile, "TensorRT 8.6 gives the profile to the first context only"
        least, _, most = self.engine.profile[name]
        if not least[0] <= shape[0] <= most[0]:
            return False
        self.shapes[name] = shape
        if not self.engine.inputs.keys() <= self.shapes.keys():
            return True
        dtypes = {DataType.UINT8: np.uint8, DataType.FLOAT: np.float32}
        zeros = {
            key: np.zeros(self.shapes[key], dtypes[self.engine.get_tensor_dtype(key)]) for key in self.engine.inputs
        }
        results = self.engine.session.run(list(self.engine.outputs), zeros)
        self.shapes |= {key: value.shape for key, value in zip(self.engine.outputs, results, strict=True)}
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if stream in self.cuda.capturing and not self.ran:
            return False  # the real one sets itself up in its first run, which cannot be captured
        self.ran = True
        self.cuda.enqueue(stream, self._run)
        return True

    def _run(self) -> None:
        arrays = {name: self._array(name) for name in self.shapes}
        names = list(self.engine.outputs)
        results = self.engine.session.run(names, {name: arrays[name] for name in self.engine.inputs})
        for name, result in zip(names, results, strict=True):
            arrays[name][...] = result

    def _array(self, name: str) -> Any:
        dtype = np.uint8 if self.engine.get_tensor_dtype(name) == DataType.UINT8 else np.float32
        shape = self.shapes[name]
        view = self.cuda.view(self.addresses[name], int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.ctypeslib.as_array(view).view(dtype).reshape(shape)


def _shape(kind: Any) -> tuple[int, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)


def install(monkeypatch: pytest.MonkeyPatch, version: str = "10.3.0", gpus: int = 1) -> TensorRt:
    """Makes `import tensorrt` and `import cuda.bindings.runtime` find the stand-ins."""
    cuda = Cuda(gpus)
    if not gpus:
        cuda.failing["cudaGetDeviceCount"] = INSUFFICIENT_DRIVER
    trt = TensorRt(version, cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return trt


def install_rtx(monkeypatch: pytest.MonkeyPatch, compute_capability: str = "8.9") -> TensorRt:
    """Makes `import tensorrt_rtx_bindings` find the stand-in, on a GPU of its own kind."""
    cuda = Cuda(compute_capability=compute_capability)
    trt = TensorRt("1.7.1", cuda, "tensorrt_rtx_bindings")
    monkeypatch.setitem(sys.modules, trt.__name__, trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return trt
