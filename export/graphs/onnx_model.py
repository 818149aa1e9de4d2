"""What the rewrites of ONNX graphs have in common: labels, files of the same bytes each time, results from within."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
from onnx import helper


def labels_of(model: onnx.ModelProto) -> dict[str, str]:
    """A model's metadata."""
    return {entry.key: entry.value for entry in model.metadata_props}


def write_model(model: onnx.ModelProto, labels: dict[str, str], target: Path) -> None:
    """Labels, checks and writes a model: the same one gives the same bytes each time."""
    helper.set_model_props(model, labels)
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString(deterministic=True))


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drops the weights that no node reads."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)


def session_for(model: onnx.ModelProto, tensors: Collection[str]) -> Any:
    """Opens a model with ONNX Runtime, on one thread, so that sums are the same each time; it gives those tensors."""
    import onnxruntime  # noqa: PLC0415 - `Support.find` says where it is missing

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.ClearField("output")
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
