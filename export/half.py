"""Typed FP16 graphs: what is computed in which precision stands in the ONNX graph itself, as casts.

FP16 from the first convolution or matrix product to the last; FP32 where the table says why. Two networks of the
seed's size, trained on procedural and on real faces, against their FP32 graphs. Errors of mu and log_var are the
largest, as shares of their spread. ONNX Runtime's CPU kernels round what passes between nodes to FP16
and sum in FP32 (256 images); ONNX's reference evaluator sums in FP16 as well, which no GPU does worse (4 images).

|                                           | ONNX Runtime           | reference evaluator    |
|-------------------------------------------|------------------------|------------------------|
| as written here: mu                       | 0.003, 0.002           | 0.003, 0.003           |
| as written here: log_var                  | 0.004, 0.003           | 0.004, 0.003           |
| latent heads in FP16: log_var             | 0.014, 0.016           | 0.034, 0.037           |
| as written here: decoded images, PSNR     | 68.6 dB, 69.2 dB       | 65.5 dB, 65.2 dB       |
| from the sigmoid to rounding in FP16      | 62.0 dB, 62.4 dB       | 62.0 dB, 61.6 dB       |

- The heads sum 2,048 products and answer in float32: that is 3 % of the encoder's arithmetic, and FP32 there
  makes the error of log_var four to thirteen times smaller.
- From the sigmoid to the rounding, levels up to 255 have steps of 1/8 in FP16, and some round to the neighbour.
- Scaling of bytes to [0, 1] makes no difference here; it is FP32 so that a runtime which multiplies by 1/255 does so
  with all its digits.

No pixel was off by more than one level in any of these.

Of a quantised graph (Q/DQ) what stays in float becomes FP16 in the same way, scales included: then TensorRT's int8
convolutions hand on FP16, and no layer is left in FP32 but those of the table. ONNX has FP16 scales since opset 19.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import InputError
from export.tensorrt_build import KEPT

FULL, HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_SUFFIXES = {FULL: "float32", HALF: "float16"}
_QUANTISED_OPSET = 19
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_CARRIERS = frozenset({"DequantizeLinear", "Flatten", "Reshape", "Transpose"})
"""Have the precision of what reads them: a cast between scales and the layer would keep it from computing in int8."""


def write_half(source: Path, target: Path) -> None:
    """Writes the FP16 form of an FP32 graph: the same inputs and outputs, and the same bytes each time.

    Args:
        source: Any graph of `export.graphs`, float32 inside, or one with quantisation (Q/DQ). Opset and metadata are
            kept, but that the latter gets an opset with FP16 scales.
        target: File to write, may be `source`; its metadata has `precision` "fp16" besides, if it had none.

    Raises:
        InputError: a weight is too large for FP16.
    """
    model = onnx.load(source)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        model = onnx.version_converter.convert_version(model, _QUANTISED_OPSET)
    types = _types(model)
    try:
        _retype(model, types, _halves(model.graph, types))
    except OverflowError as error:
        raise InputError(f"{source}: {error}; build it with --precision fp32 or bf16") from None
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {"precision": "fp16", **properties})
    _write(model, target)


def _write(model: onnx.ModelProto, target: Path) -> None:
    model.graph.ClearField("value_info")
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString(deterministic=True))


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def _halves(graph: onnx.GraphProto, types: dict[str, int]) -> set[str]:
    """The tensors that nodes give in FP16, of all float tensors."""
    results = {value.name for value in graph.output}
    after = {value.name: False for value in graph.input}
    for node in graph.node:
        weighted = node.op_type in _WEIGHTED or any(after.get(name, False) for name in node.input)
        after.update(dict.fromkeys(node.output, weighted))
    before: dict[str, bool] = {}
    found: set[str] = set()
    read: set[str] = set()  # by what computes in FP16
    for node in reversed(graph.node):
        leads = any(before.get(name, False) for name in node.output)
        weighted = node.op_type in _WEIGHTED
        for name in node.input:
            before[name] = before.get(name, False) or leads or weighted
        inner = weighted or (leads and after[node.output[0]])
        for name in node.output:
            half = name in read if node.op_type in _CARRIERS else inner
            if types[name] == FULL and half and name not in results:
                found.add(name)
        if found.intersection(node.output):
            read.update(node.input)
    return found


def _retype(model: onnx.ModelProto, types: dict[str, int], halves: set[str]) -> None:
    """Gives each node of floats its precision, casts where precisions meet, and narrows weights.

    Raises:
        OverflowError: a weight is beyond FP16's largest number.
    """
    graph, opset = model.graph, model.opset_import[0].version
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == FULL}
    given = {name: HALF if name in halves else FULL for name, kind in types.items() if kind == FULL}
    made: dict[tuple[str, int], str] = {}
    nodes = []
    for node in graph.node:
        quantises = node.op_type == "QuantizeLinear"
        kind = given.get(node.input[0] if quantises else node.output[0], 0)
        for index in (1,) if quantises else _data_inputs(node, opset) if kind else ():
            name = node.input[index]
            if given.get(name, kind) == kind:
                continue
            if (name, kind) not in made:
                made[name, kind] = f"{name}_{_SUFFIXES[kind]}"
                if name in weights:
                    graph.initializer.append(_narrow(weights[name], made[name, kind]))
                else:
                    nodes.append(_cast(name, kind, made[name, kind]))
            node.input[index] = made[name, kind]
        if kind == FULL and node.name and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            node.name = KEPT + node.name
        nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)


def _data_inputs(node: onnx.NodeProto, opset: int) -> Iterator[int]:
    """Which inputs must have the type of the first output; a Cast has none, nor have indices, shapes and scales."""
    schema = onnx.defs.get_schema(node.op_type, opset)
    for index, name in enumerate(node.input):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]  # the last one may stand for many
        if name and formal.type_str == schema.outputs[0].type_str:
            yield index


def _narrow(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    limit = np.finfo(np.float16).max
    if np.abs(values).max(initial=0) > limit:
        raise OverflowError(f"the weights {tensor.name} reach {np.abs(values).max():g}, FP16 ends at {limit:g}")
    return numpy_helper.from_array(values.astype(np.float16), name)


def _cast(source: str, kind: int, target: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast/{target}", to=kind)
