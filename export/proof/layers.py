"""What a lower precision costs in single layers: every convolution and matrix product beside its FP32 form.

A layer of the reduced graph is given what the FP32 graph's layers give, not what the layers before it make of that in
the lower precision: so its error is its own. With Q/DQ, rounding a layer's inputs counts as the layer's, and so does
the correction for all layers in the biases of the last ones.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from engine.arrays import Array
from engine.proof.truth import Truth
from export.engines.candidate import Candidate
from export.graphs.fp16 import WEIGHTED
from export.graphs.onnx_model import session_for

IMAGES = 8
"""Images, and latents, that layers are compared on: each gives thousands of values of every layer."""
SHOWN = 5
"""Layers that the table has: those that cost most."""


class Cost(NamedTuple):
    """A layer's error."""

    error: float  # root mean square of the error of its results, as a share of that of the results in FP32
    layer: str  # which graph, kind and name


def costs(source: Path, reduced: Path, values: Array) -> list[Cost]:
    """The errors of all layers of a graph, in its order: in FP32, and `reduced`, with FP16 or INT8 inside.

    `values` go in, as the graph takes it: images uint8 [N, S, S, 3] or latents float32 [N, D].
    """
    full, model = onnx.load(source), onnx.load(reduced)
    (name,) = [value.name for value in full.graph.input]
    layers = {node.output[0]: node for node in full.graph.node if node.op_type in WEIGHTED}
    truth = dict(zip(layers, session_for(full, layers).run(None, {name: values}), strict=True))
    given = _cut(model, list(layers))
    feeds = {name: values, **{each: truth[each].astype(kind) for each, kind in given.items()}}
    found = session_for(model, [f"{output}.own" for output in layers]).run(None, feeds)
    return [
        Cost(_share(own, truth[output]), f"{reduced.name}: {node.op_type} {node.name}")
        for (output, node), own in zip(layers.items(), found, strict=True)
    ]


def table(folder: Path, candidate: Candidate, truth: Truth) -> str:
    """What its precision costs a candidate with FP16 or INT8 graphs, as text for a screen."""
    inputs = truth.images[:IMAGES], truth.answers["mu"][:IMAGES]
    graphs = zip(candidate.portable, candidate.graphs, inputs, strict=True)
    found = [cost for source, reduced, values in graphs for cost in costs(folder / source, folder / reduced, values)]
    worst = sorted(found, reverse=True)[:SHOWN]
    title = (
        f"what {candidate.precision} costs single layers, as a share of their results (RMS, {len(inputs[0])} images)"
    )
    rows = [f"  {cost.error:9.2e}  {cost.layer}" for cost in worst]
    return "\n".join([f"{title}; the worst {len(worst)} of {len(found)}", *rows])


def _cut(model: onnx.ModelProto, outputs: list[str]) -> dict[str, Any]:
    """Makes what layers give inputs of the graph; gives their dtypes. What would have been given is called `.own`."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    graph = model.graph
    read = [output for output in outputs if any(output in node.input for node in graph.node)]
    for node in graph.node:
        if node.output[0] in outputs:
            node.output[0] += ".own"
    graph.ClearField("value_info")
    graph.input.extend(helper.make_tensor_value_info(output, kinds[output], None) for output in read)
    return {output: helper.tensor_dtype_to_np_dtype(kinds[output]) for output in read}


def _share(values: Array, reference: Array) -> float:
    error = values.astype(np.float64) - reference
    return float(np.sqrt(np.square(error).mean() / max(np.square(reference, dtype=np.float64).mean(), 1e-30)))
