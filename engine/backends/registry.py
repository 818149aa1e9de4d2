"""The backends of this engine, a row each. Another one is a row here, a module beside it, and its extra in pyproject.

Only the module of a backend that is used is imported: a server needs no other.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.backends.base import CPU, CUDA, Backend, Options, kind_of
from engine.errors import BackendError, BundleError


@dataclass(frozen=True)
class Row:
    """A backend."""

    name: str  # in flags and manifests
    title: str  # for a person
    module: str
    class_name: str  # a `Backend`, made with the files of encoder and decoder and `Options`
    precisions: Mapping[str, tuple[str, ...]]  # that it can compute in where the hardware has them, by device
    extras: Mapping[str, str]  # what pip installs for it, by device
    packages: tuple[str, ...]  # of its runtime, one of which is installed; their versions decide what it computes
    plan: str | None = None  # ending of the names of its plans, built for some GPUs and one version; None: it has none
    built_anywhere: bool = False  # its plans can be built where they don't run

    def load(self, device: str) -> type[Backend]:
        """Its class.

        Raises:
            BackendError: When its runtime can't be imported; names the extra for this device.
        """
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            raise BackendError(
                f"{self.title} can't be imported ({error}); pip install 'dfc-vae[{self.extras[kind_of(device)]}]'"
            ) from error
        found: type[Backend] = getattr(module, self.class_name)
        return found


_TENSORRT = {CUDA: ("fp32", "fp16", "int8")}

BACKENDS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "onnxruntime",
            "ONNX Runtime",
            "engine.backends.onnxruntime",
            "OnnxRuntimeBackend",
            {CPU: ("fp32", "fp16", "int8"), CUDA: ("fp32", "fp16")},
            {CPU: "cpu", CUDA: "gpu"},
            ("onnxruntime", "onnxruntime-gpu"),
        ),
        Row(
            "openvino",
            "OpenVINO",
            "engine.backends.openvino",
            "OpenVinoBackend",
            {CPU: ("fp32", "bf16", "int8")},
            {CPU: "openvino"},
            ("openvino",),
        ),
        Row(
            "tensorrt",
            "TensorRT",
            "engine.backends.tensorrt",
            "TensorRtBackend",
            _TENSORRT,
            {CUDA: "tensorrt"},
            ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
            plan=".plan",
        ),
        Row(
            "tensorrt-rtx",
            "TensorRT for RTX",
            "engine.backends.tensorrt",
            "TensorRtBackend",
            _TENSORRT,
            {CUDA: "tensorrt-rtx"},
            ("tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings"),
            plan=".rtx.plan",
            built_anywhere=True,
        ),
    )
}
"""By name."""


def find(name: str) -> Row:
    """The row of a backend.

    Raises:
        BundleError: When there is none of that name.
    """
    if name not in BACKENDS:
        raise BundleError(f"the bundle asks for the backend {name!r}; this engine has: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def open_graphs(encoder: Path, decoder: Path, options: Options) -> Backend:
    """Opens two graphs, or for a backend of plans two plans.

    Raises:
        BundleError: When one is missing, damaged, or has other inputs and outputs; or there is no such backend, or it
            has no such device or precision.
        BackendError: When its runtime isn't installed, or this machine can't compute like that.
    """
    row, kind = find(options.backend), kind_of(options.device)
    if options.precision not in row.precisions.get(kind, ()):
        has = "; ".join(f"on {device} {', '.join(values)}" for device, values in row.precisions.items())
        raise BundleError(
            f"the bundle asks for {row.name} on {kind} in {options.precision!r}; this engine has it {has}"
        )
    return row.load(kind)(encoder, decoder, options)  # type: ignore[call-arg]
