"""FP16 graphs: the precision of every node stands in the ONNX graph itself, as element types and casts.

FP16 are all convolutions and matrix products but the heads of the encoder, and whatever leads to one of those; FP32 are
the heads and what follows the decoder's last convolution (figures: benchmarks/reports/2026-11-24-graph-forms.md):

- The heads sum thousands of products and answer in float32: a few per cent of the encoder's arithmetic, and in FP32 the
  error of log_var is several times smaller.
- From the sigmoid to the rounding, levels up to 255 have steps of 1/8 in FP16, and some round to the neighbour.

Of a quantised graph (Q/DQ) what stays in float becomes FP16 in the same way, scales included: then TensorRT's int8
convolutions hand on FP16, and no layer is left in FP32 but those. ONNX has FP16 scales since opset 19.

Tracing a network in FP16 gives the same nodes and the same figures, but needs torch and the run, which a bundle's
portable graphs can do without, and has no answer for quantised graphs.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import InputError
from export.graphs.onnx_model import drop_unused, labels_of, write_model

_FULL, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_SUFFIXES = {_FULL: "float32", _HALF: "float16"}
_QUANTISED_OPSET = 19
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Kinds of the nodes that have the weights: layers."""
KEPT = "float32/"
"""Stands in the names of those nodes that compute in FP32: TensorRT 8.6 has to be told."""


def write_half(source: Path, target: Path) -> None:
    """Writes the FP16 form of an FP32 graph: the same inputs and outputs, and the same bytes each time.

    Args:
        source: Any graph of `trace`, float32 inside, or one with quantisation (Q/DQ). Opset and metadata are kept, but
            that the latter gets an opset with FP16 scales.
        target: File to write, may be `source`; its metadata has `precision` "fp16" besides, if it had none.

    Raises:
        InputError: a weight is too large for FP16.
    """
    model = onnx.load(source)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        model = onnx.version_converter.convert_version(model, _QUANTISED_OPSET)
    try:
        _retype(model)
    except OverflowError as error:
        raise InputError(f"{source}: {error}; build it with --precision fp32 or bf16") from None
    write_model(model, {"precision": "fp16", **labels_of(model)}, target)


def _retype(model: onnx.ModelProto) -> None:
    """Gives each node its precision, with narrower weights, and casts where precisions meet."""
    graph, halves = model.graph, _halves(model.graph)
    kinds = {name: _HALF if name in halves else _FULL for name in _floats(model)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made: set[str] = set()
    nodes = []
    for node in graph.node:
        kind = _HALF if node.output[0] in halves else _FULL
        for index, name in enumerate(node.input):
            if kinds.get(name, kind) == kind or (node.op_type == "Resize" and index):  # whose scales are FP32
                continue
            node.input[index] = f"{name}_{_SUFFIXES[kind]}"
            if node.input[index] not in made:
                made.add(node.input[index])
                if name in weights:
                    graph.initializer.append(_narrow(weights[name], node.input[index]))
                else:
                    nodes.append(_cast(name, kind, node.input[index]))
        given = kinds.get(node.output[0])
        if node.op_type == "Cast" and given:
            node.CopyFrom(_cast(node.input[0], given, node.output[0]))
        if given == _FULL and node.name and node.op_type != "DequantizeLinear":
            node.name = KEPT + node.name
        nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("value_info")
    drop_unused(graph)


def _halves(graph: onnx.GraphProto) -> set[str]:
    """What the nodes in FP16 give, and other tensors of theirs."""
    results = {value.name for value in graph.output}
    read: set[str] = set()  # by nodes in FP16
    found: set[str] = set()
    for node in reversed(graph.node):
        if not read.isdisjoint(node.output) or (node.op_type in WEIGHTED and results.isdisjoint(node.output)):
            read.update(node.input)
            found.update(node.output)
    return found


def _floats(model: onnx.ModelProto) -> set[str]:
    """The tensors of float32."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {value.name for value in values if value.type.tensor_type.elem_type == _FULL}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == _FULL}


def _narrow(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    limit = np.finfo(np.float16).max
    if np.abs(values).max(initial=0) > limit:
        raise OverflowError(f"the weights {tensor.name} reach {np.abs(values).max():g}, FP16 ends at {limit:g}")
    return numpy_helper.from_array(values.astype(np.float16), name)


def _cast(source: str, kind: int, target: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast/{target}", to=kind)
